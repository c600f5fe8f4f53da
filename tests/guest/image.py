"""QEMU and the guest's disk: made once from the machine's own package archives, and kept.

    <cache>/qemu/      QEMU with all of its libraries, unpacked; nothing of it is installed on the machine
    <cache>/disk.img   Debian trixie with its kernel, what Whimbrel calls, CRIU >= 4.2 and the locked Python packages
    <cache>/kernel, initrd, key

Debian 12's QEMU 7.2 must not be used: under emulation it was seen to damage guest memory. QEMU, kernel and root are
trixie's whatever the machine runs, so the guest is the same everywhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provision import criu
from provision.archive import PrivateApt, Source, release_sources
from provision.environment import uv_settings
from provision.shell import CommandError, SetupError, Step, run

REPO = Path(__file__).parents[2]
CACHE = Path("/var/cache/whimbrel/guest")
SUITE = "trixie"
PACKAGES = (
    "fuse3", "hostname", "iproute2", "iptables", "kmod", "linux-image-amd64", "nfs-common", "nfs-kernel-server",
    "nftables", "openssh-sftp-server", "procps", "python3", "rsync", "runc", "skopeo", "sshfs", "umoci",
)  # fmt: skip
TOOLS_OF_DEVELOPERS = {
    "grimp", "grpcio", "grpcio-tools", "import-linter", "mypy", "pre-commit", "ruff", "uv", "virtualenv",
}  # fmt: skip
DISK_BYTES = 4 << 30  # of which the machine's file system holds only what is used
BOOT_FILES = {"kernel": "vmlinuz", "initrd": "initrd.img"}


class Unavailable(Exception):
    """The guest cannot be made here; the message says why."""


@dataclass(frozen=True)
class Image:
    """`qemu`: the command that starts it, with where its firmware is."""

    qemu: tuple[str, ...]
    disk: Path
    kernel: Path
    initrd: Path


def build(cache: Path = CACHE, *, progress: Callable[[str], object] = print) -> Image:
    """Make what is missing (about two minutes and 2 GB the first time). Raises Unavailable."""
    if os.geteuid() != 0:
        raise Unavailable("making a guest's disk needs root")
    if platform.machine() != "x86_64":
        raise Unavailable("the guest is x86-64 only")
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not on PATH: install the package {package}")
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o755)  # apt downloads as a user of its own, who has to reach what is below
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not (cache / "qemu").is_dir():
                progress("unpacking QEMU")
                _unpack_qemu(cache)
            if not (cache / "key").exists() or (cache / "key").read_text() != _key():
                _make_disk(cache, progress)
        except (CommandError, SetupError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"the guest cannot be made: {error}") from error
    return Image(
        qemu=_qemu_command(cache / "qemu"), disk=cache / "disk.img", kernel=cache / "kernel", initrd=cache / "initrd"
    )


def _key() -> str:
    files = (Path(__file__), Path(__file__).with_name("init.py"), REPO / "requirements.lock")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _source() -> Source:
    """The machine's own archive of Debian, whatever release of it the machine runs."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    sources = release_sources(criu.APT_DIR, codename)
    if not sources:
        raise Unavailable(f"apt knows no archive for the release {codename or '(unknown)'} of this machine")
    return sources[0]


def _unpack_qemu(cache: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as scratch:
        Path(scratch).chmod(0o755)
        apt = PrivateApt(Path(scratch) / "apt")
        apt.use(_source(), [SUITE])
        for package in apt.download("qemu-system-x86", SUITE):
            run(["dpkg-deb", "-x", str(package), f"{scratch}/root"])
        Path(scratch, "root").rename(cache / "qemu")


def _qemu_command(root: Path) -> tuple[str, ...]:
    """QEMU by the dynamic loader and with the libraries that were unpacked beside it."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    firmware = [part for folder in ("seabios", "qemu") for part in ("-L", str(root / "usr/share" / folder))]
    loader = (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries))
    return (*loader, str(root / "usr/bin/qemu-system-x86_64"), *firmware)


def _make_disk(cache: Path, progress: Callable[[str], object]) -> None:
    (cache / "key").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as scratch:
        Path(scratch).chmod(0o755)
        root = Path(scratch) / "root"
        progress(f"installing Debian {SUITE}")
        source = _source()
        entry = source.template.format(suites=SUITE)
        options = ["--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        run(["mmdebstrap", *options, SUITE, str(root), "-"], stdin=entry)
        progress("adding CRIU and the Python packages")
        _add_criu(root, Path(scratch) / "apt")
        _add_python(root)
        shutil.copy(Path(__file__).with_name("init.py"), root / "usr/local/sbin/guest-init")
        (root / "usr/local/sbin/guest-init").chmod(0o755)
        for name, link in BOOT_FILES.items():
            shutil.copy(root / os.readlink(root / link), cache / name)
        progress("making its disk")
        fresh = Path(scratch) / "disk.img"
        with fresh.open("wb") as file:
            file.truncate(DISK_BYTES)
        run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(fresh)])
        fresh.rename(cache / "disk.img")
    (cache / "key").write_text(_key())


def _add_criu(root: Path, scratch: Path) -> None:
    """As setup unpacks it on a machine whose own is too old; trixie's is."""
    _, packages = criu.download(PrivateApt(scratch), Step("criu"))
    place = root / "opt/whimbrel/criu"
    place.parent.mkdir(parents=True)
    for package in packages:
        run(["dpkg-deb", "-x", str(package), str(place)])
    command = [part.replace(str(root), "") for part in criu.loader_command(place)]
    criu.write_wrapper(root / "opt/whimbrel/bin/criu", command)


def _needed_of_lock() -> str:
    entries = re.split(r"^(?=[\w-]+==)", (REPO / "requirements.lock").read_text(), flags=re.M)
    return "".join(entry for entry in entries if entry.partition("==")[0] not in TOOLS_OF_DEVELOPERS)


def _add_python(root: Path) -> None:
    """The locked packages, in the wheels for the guest's Python; the project itself is unpacked at each boot."""
    version = os.readlink(root / "usr/bin/python3").removeprefix("python")
    place = root / f"usr/local/lib/python{version}/dist-packages"
    python = REPO / ".venv/bin/python"
    wheels = ["--python-version", version, "--only-binary", ":all:", "--require-hashes", "--no-deps"]
    install = [str(python.with_name("uv")), "pip", "install", "-q", "--target", str(place), *wheels, "-r", "-"]
    run(install, env=uv_settings(python), stdin=_needed_of_lock())
    # Here and not there: an emulated processor is slow at it.
    run(["chroot", str(root), "python3", "-m", "compileall", "-q", "/" + str(place.relative_to(root))])
    (place / "whimbrel.pth").write_text("/whimbrel/src\n")
    (root / "whimbrel").mkdir()
