"""System containers of LXC: an init, the daemons of a small system, and a workload as one of its services.

`debian`: sysvinit, syslog, cron (mmdebstrap, the machine's own release). `busybox`: all of that in one program, as in
Alpine. The workload's tree, out of its image, lies over it, and the init keeps it running.
"""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from whimbrel.bench.trial import Workload
from whimbrel.experiments.site import Site
from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.model.service import ServiceStatus
from whimbrel.network import netns
from whimbrel.workloads import catalogue
from whimbrel.workloads.builder import CACHE as IMAGES
from whimbrel.workloads.builder import Image, build, image_key

CACHE = IMAGES.parent / "systems"
PROGRAMS = ("lxc-start", "lxc-stop", "lxc-destroy", "lxc-checkpoint", "mmdebstrap", "rsync", "umoci")
PACKAGES = "sysvinit-core,busybox-syslogd,cron"
SLIM = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")]
SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
START = "srv/start.sh"
BUSYBOX = "usr/bin/busybox"
SYSVINIT_LINE = f"sv:2345:respawn:/{START}"
BUSYBOX_INITTAB = f"""::sysinit:/{BUSYBOX} mkdir -p /var/spool/cron/crontabs /var/log
::respawn:/{BUSYBOX} syslogd -n
::respawn:/{BUSYBOX} crond -f
::respawn:/{START}
"""
SETTINGS = """lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = {name}
lxc.rootfs.path = dir:{rootfs}
lxc.net.0.type = empty
lxc.console.path = none
lxc.tty.max = 0
"""


def missing() -> str:
    """Why there can be no system containers here, "" when there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(lacking)} missing: run scripts/setup --engines" if lacking else ""


def template(kind: str, workload: Workload, image: Image) -> Path:
    """The root file system to copy from, made once for each system and workload. Raises Refused."""
    root = CACHE / f"{kind}-{workload.recipe.name}"
    note = root.with_suffix(".key")
    key = "\n".join((kind, PACKAGES, image_key(workload.recipe), *workload.env, SYSVINIT_LINE, BUSYBOX_INITTAB))
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists() or note.read_text() != key:
            note.unlink(missing_ok=True)
            shutil.rmtree(root, ignore_errors=True)
            (_debian if kind == "debian" else _busybox)(root)
            _unpack(image, root)
            _install(workload, root)
            note.write_text(key)
    return root


def _debian(root: Path) -> None:
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    mirror = next((path for path in SOURCES if Path(path).exists()), "")
    suite = words.get("VERSION_CODENAME", "").strip('"')
    _run("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", *SLIM, suite, str(root), mirror)
    inittab = root / "etc/inittab"
    kept = [line for line in inittab.read_text().splitlines() if "getty" not in line]
    inittab.write_text("\n".join([*kept, SYSVINIT_LINE, ""]))


def _busybox(root: Path) -> None:
    """The container `blank` is busybox alone."""
    root.mkdir()
    _unpack(build(catalogue.find("blank")), root)
    for link in ("sbin/init", "bin/sh"):
        path = root / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(f"/{BUSYBOX}")
    (root / "etc/inittab").write_text(BUSYBOX_INITTAB)


def _unpack(image: Image, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        bundle = Path(work, "bundle")
        _run("umoci", "unpack", "--image", image.umoci, str(bundle))
        # links that the system has where the image has folders (/bin -> /usr/bin) stay what they are
        _run("rsync", "--archive", "--keep-dirlinks", f"{bundle}/rootfs/", f"{root}/")


def _install(workload: Workload, root: Path) -> None:
    settings = "".join(f"export {shlex.quote(each)}\n" for each in workload.env)
    command = shlex.join(workload.recipe.command)
    start = root / START
    start.write_text(f"#!/bin/sh\n{settings}cd {shlex.quote(workload.recipe.workdir)}\nexec {command}\n")
    start.chmod(0o755)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"]
        raise Refused(f"making a system container: {argv[0]} failed: {words[-1]}")


class LxcNode:
    """The containers of one node of the lab; its commands run in the node's network namespace."""

    def __init__(self, site: Site, node: str) -> None:
        self.path = site.folder(node) / "engines/lxc"  # where the lab's agents look for them, also where none is yet
        self.path.mkdir(parents=True, exist_ok=True)
        self._namespace = site.underlay[node][1]

    def start(self, name: str, root: Path) -> None:
        folder = self.path / name
        folder.mkdir()
        _run("cp", "--archive", str(root), str(folder / "rootfs"))
        (folder / "config").write_text(SETTINGS.format(name=name, rootfs=folder / "rootfs"))
        self("start", "-n", name, "-d")

    def destroy(self, name: str) -> None:
        """Safe when there is none."""
        if (self.path / name).exists():
            self("stop", "-n", name, "-k", may_fail=True)
            self("destroy", "-n", name, "-f", may_fail=True)
            shutil.rmtree(self.path / name, ignore_errors=True)

    def __call__(self, command: str, *arguments: str, may_fail: bool = False) -> None:
        argv = [f"lxc-{command}", "-P", str(self.path), *arguments]
        null = subprocess.DEVNULL  # LXC's monitor keeps what it gets
        code = netns.call(
            self._namespace, lambda: subprocess.run(argv, stdin=null, stdout=null, stderr=null, check=False).returncode
        )
        if code and not may_fail:
            raise Refused(f"{' '.join(argv)} failed (exit code {code}): see its log below {self.path}")


@contextlib.contextmanager
def system_container(
    site: Site, name: str, kind: str, workload: Workload, image: Image, node: str
) -> Iterator[ServiceStatus]:
    """A system container on `node`, adopted as the service `name`; it goes with the block, wherever it is."""
    nodes = [LxcNode(site, each) for each in site.edges]
    here = nodes[site.edges.index(node)]
    try:
        here.start(name, template(kind, workload, image))
        yield site.controller.adopt_service(
            name, "lxc", name, node, ports=workload.recipe.ports, workload=workload.name
        )
    finally:
        with contextlib.suppress(WhimbrelError):
            site.controller.remove_service(name)
        for each in nodes:
            each.destroy(name)
