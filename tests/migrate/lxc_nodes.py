"""A Debian with sysvinit as an LXC container on a node of the lab."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from tests.migrate.conftest import Lab
from tests.migrate.docker_nodes import CACHE
from whimbrel.lab import commands
from whimbrel.network import netns
from whimbrel.workloads.memory import service

PACKAGES = "sysvinit-core,busybox-syslogd,cron,python3-minimal,libpython3-stdlib"
SLIM = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")]
# Half of its files, which none of its processes opens.
NEEDLESS = (
    *("usr/share/perl", "usr/share/perl5", "usr/lib/*/perl", "usr/lib/*/perl5", "usr/lib/*/perl-base"),
    *("usr/lib/*/gconv", "usr/share/zoneinfo", "usr/share/bash-completion", "var/lib/dpkg/info", "var/cache/debconf"),
)
SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
SYSLOG = 'SYSLOG_OPTS="-O /var/log/messages"\n'  # into a file; Debian's way is a ring in shared memory
SETTINGS = """\
lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = {name}
lxc.rootfs.path = dir:{rootfs}
lxc.net.0.type = empty
lxc.console.path = none
lxc.tty.max = 0
lxc.cgroup.pids.max = 321
"""


def missing() -> str:
    """Why LXC cannot be tested here, "" when it can."""
    lacking = [name for name in ("lxc-start", "lxc-checkpoint", "mmdebstrap") if shutil.which(name) is None]
    return f"{', '.join(lacking)} missing: run scripts/setup --engines" if lacking else ""


def _suite() -> str:
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return words["VERSION_CODENAME"].strip('"')


def debian() -> Path:
    """A small Debian of the machine's own release, made once; the demo's service is one of its processes."""
    recipe = hashlib.sha256(f"{PACKAGES}{SYSLOG}{NEEDLESS}".encode()).hexdigest()[:8]
    root = CACHE / f"debian-sysvinit-{recipe}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            making = root.with_suffix(".new")
            shutil.rmtree(making, ignore_errors=True)
            mirror = next(path for path in SOURCES if Path(path).exists())
            build = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", *SLIM, _suite(), str(making), mirror]
            done = subprocess.run(build, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            for found in (path for pattern in NEEDLESS for path in making.glob(pattern)):
                shutil.rmtree(found)
            inittab = making / "etc/inittab"
            lines = [line for line in inittab.read_text().splitlines() if "getty" not in line]
            inittab.write_text("\n".join([*lines, "sv:2345:respawn:/usr/bin/python3 /srv/service.py", ""]))
            (making / "etc/default/busybox-syslogd").write_text(SYSLOG)
            making.rename(root)
        shutil.copyfile(Path(service.__file__), root / "srv/service.py")
    return root


class LxcNode:
    """The containers of one node; the commands run in its network namespace, where the monitors listen."""

    def __init__(self, lab: Lab, node: str) -> None:
        self.path = lab.state_dir(node) / "engines/lxc"
        self.path.mkdir(parents=True, exist_ok=True)
        self._namespace = commands.node_namespace(node, lab_dir=lab.directory)

    def make(self, name: str) -> Path:
        """A container of its own, not started. Returns its root."""
        rootfs = self.make_empty(name)
        rootfs.rmdir()
        subprocess.run(["cp", "-a", str(debian()), str(rootfs)], check=True)
        (rootfs / "etc/hostname").write_text(f"{name}\n")  # else init gives it the name of the host that built it
        return rootfs

    def make_empty(self, name: str) -> Path:
        """One that LXC knows, and cannot start."""
        rootfs = self.path / name / "rootfs"
        rootfs.mkdir(parents=True)
        self.configure(name)
        return rootfs

    def configure(self, name: str, old: str = "", new: str = "") -> None:
        """Its settings, a line of them replaced by another."""
        settings = SETTINGS.format(name=name, rootfs=self.path / name / "rootfs")
        (self.path / name / "config").write_text(settings.replace(old, new) if old else f"{settings}{new}\n")

    def run(self, name: str, *, memory_mb: int) -> None:
        """Make one and start it."""
        rootfs = self.make(name)
        service_line = "/usr/bin/python3 /srv/service.py"
        inittab = rootfs / "etc/inittab"
        inittab.write_text(inittab.read_text().replace(service_line, f"{service_line} --memory-mb {memory_mb}"))
        self("start", "-n", name, "-d")
        deadline = time.monotonic() + 30
        while not {"init", "syslogd", "cron", "python3"} <= set(self.processes(name)):
            assert time.monotonic() < deadline, f"only {self.processes(name)} run"
            time.sleep(0.2)

    def processes(self, name: str) -> list[str]:
        """The names of all processes inside."""
        listed = self("attach", "-n", name, "--", "busybox", "ps", "-o", "comm").splitlines()
        return sorted(line.strip() for line in listed[1:] if line.strip() not in ("ps", "busybox"))

    def __call__(self, command: str, *arguments: str, may_fail: bool = False) -> str:
        """Run an `lxc-…` command."""
        argv = [f"lxc-{command}", "-P", str(self.path), *arguments]
        output = None if command != "start" else subprocess.DEVNULL  # the monitor keeps what it gets
        done = netns.call(
            self._namespace,
            lambda: subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=output or subprocess.PIPE, stderr=output or subprocess.PIPE,
                text=True, check=False, timeout=60,
            ),
        )  # fmt: skip
        assert may_fail or done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
        return (done.stdout or "").strip()

    def names(self) -> list[str]:
        return self("ls").split()

    def state(self, name: str) -> str:
        return self("info", "-n", name, "-s", "-H").split(":")[-1].strip()

    def stop(self) -> None:
        for name in self.names():
            self("stop", "-n", name, "-k", may_fail=True)
            self("destroy", "-n", name, "-f")
