"""Builds the demo's OCI image out of the distribution's own packages: no registry, no daemon, no mounts.

The image has two layers: a small Python, and ``service.py``. Editing the service remakes only the second,
so a node that has the first already fetches a few kilobytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TAG = "demo"
SERVICE = Path(__file__).with_name("service.py")
# Without a version in their names: whichever Python the release has comes along by dependency.
PACKAGES = ("python3-minimal", "libpython3-stdlib")
MUST_IMPORT = (
    "argparse, asyncio, hashlib, json, mmap, multiprocessing, multiprocessing.shared_memory, os, random, "
    "select, selectors, signal, socket, struct, sys, threading, time, zlib"
)
# Parts of the standard library that no service needs; their libraries go with them.
# sitecustomize.py is a link into /etc, which would be followed out of the tree.
# fmt: off
NEEDLESS = (
    "__pycache__", "_codecs_[!i]*", "_ctypes_test*", "_curses*", "_dbm*", "_gdbm*", "_sqlite3*",
    "_test*", "_tkinter*", "_xx*", "config-3.*", "curses", "dbm", "distutils", "ensurepip", "idlelib",
    "lib2to3", "nis.*", "ossaudiodev*", "pydoc_data", "readline.*", "sitecustomize.py", "sqlite3",
    "test", "tkinter", "turtledemo", "unittest", "venv", "xxlimited*",
)
# fmt: on
# The C library opens this one by name when a thread ends, so no program lists it as needed.
OPENED_BY_NAME = "libgcc_s.so.1"
# One time for every file: the digest of a layer then depends on what is in it, not on when it was made.
EPOCH_S = 946_684_800
EPOCH = "2000-01-01T00:00:00Z"
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
FOLDERS = ("dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "var/tmp")
CONFIG = (
    "--config.cmd=/usr/bin/python3",
    "--config.cmd=/srv/service.py",
    "--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    # A container that leaves compiled files in its own layer would have more to move.
    "--config.env=PYTHONDONTWRITEBYTECODE=1",
    "--config.env=PYTHONUNBUFFERED=1",
    "--config.workingdir=/srv",
    f"--created={EPOCH}",
)


class BuildError(Exception):
    """The image could not be built: one line with the cause and, where there is one, the way out."""


def _run(*argv: str, env: Mapping[str, str] | None = None) -> str:
    sbin = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    settings = {"PATH": sbin, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    whole = {**(os.environ if env is None else env), **settings}
    try:
        result = subprocess.run(argv, env=whole, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"cannot run {argv[0]}: {error.strerror}; run scripts/setup") from error
    if result.returncode != 0:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        cause = lines[-1] if lines else f"status {result.returncode}"
        raise BuildError(f"{argv[0]} failed: {cause}")
    return result.stdout


def _fetch_packages(work: Path) -> list[Path]:
    """Download the packages and all that they depend on.

    An empty package database makes apt's own solver name exactly what an empty root folder needs.
    """
    (work / "archives" / "partial").mkdir(parents=True)
    (work / "status").write_text("")
    download = [
        *("apt-get", "-qy", "--no-install-recommends", "--download-only"),
        *("-o", f"Dir::State::status={work / 'status'}", "-o", f"Dir::Cache::archives={work / 'archives'}"),
        *("install", *PACKAGES),
    ]
    try:
        _run(*download)
    except BuildError:  # slim installations come without package lists, others have outdated ones
        _run("apt-get", "-q", "update", "-o", "DPkg::Lock::Timeout=300")
        _run(*download)
    return sorted((work / "archives").glob("*.deb"))


def _merge_usr(root: Path) -> None:
    """Give the tree Debian's layout of today, in which /bin, /lib and so on are links into /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        inside = root / "usr" / name
        if (root / name).is_dir():
            shutil.copytree(root / name, inside, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
        inside.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")


def _needed_libraries(tree: Path, loader: Path, programs: Sequence[Path]) -> set[Path]:
    """Paths of the shared libraries that the programs load, as the tree's own loader finds them."""
    needed = set(tree.glob(f"usr/lib/*/{OPENED_BY_NAME}"))
    for program in programs:
        inside = [f"/{path.relative_to(tree)}" for path in (loader, program)]
        for line in _run("chroot", str(tree), inside[0], "--list", inside[1]).splitlines():
            _, arrow, found = line.partition(" => /")
            if arrow:
                # /lib is a link to /usr/lib by now; the file itself may be a link to a longer name.
                path = tree / found.split()[0]
                needed.add(path.parent.resolve() / path.name)
    return needed


def _copy_into(tree: Path, path: Path, root: Path) -> None:
    """Copy one file to the same place in another tree; the content if it is a link."""
    copy = root / path.relative_to(tree)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, copy)


def _copy_python(tree: Path, root: Path) -> None:
    """Copy the interpreter, its modules and the libraries that these load: a sixth of what was unpacked."""
    python = (tree / "usr/bin/python3").resolve()
    modules = tree / "usr/lib" / python.name
    loaders = sorted([*tree.glob("usr/lib/*/ld-linux*"), *tree.glob("usr/lib/ld-linux*")])
    if not (python.is_file() and python.is_relative_to(tree) and modules.is_dir() and loaders):
        raise BuildError("the distribution's python3-minimal is not laid out as expected")
    ignore = shutil.ignore_patterns(*NEEDLESS)
    shutil.copytree(modules, root / modules.relative_to(tree), ignore=ignore, ignore_dangling_symlinks=True)
    extensions = [tree / path.relative_to(root) for path in root.glob("usr/lib/*/lib-dynload/*.so")]
    for path in (python, *_needed_libraries(tree, loaders[0], [python, *extensions])):
        _copy_into(tree, path, root)
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/python3").symlink_to(python.name)
    # Programs name the loader by a path of its own, which differs between architectures.
    for path in [*loaders, *tree.glob("usr/lib64/ld-linux*")]:
        (root / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, root / path.relative_to(tree), follow_symlinks=False)


def _normalise(root: Path) -> None:
    """Same times and permissions whenever and under whichever umask the tree was made."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (EPOCH_S, EPOCH_S), follow_symlinks=False)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)


def _make_root(packages: Sequence[Path], work: Path) -> Path:
    """Unpack the packages and make the container's root folder out of them."""
    tree, root = work / "unpacked", work / "root"
    for package in packages:
        _run("dpkg-deb", "-x", str(package), str(tree))
    _merge_usr(tree)
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for name, text in FILES.items():
        (root / name).write_text(text)
    _copy_python(tree, root)
    _merge_usr(root)
    # The import proves that the tree is whole, and leaves the modules compiled, which halves the start-up
    # time. A compiled file holds its source's time and, in sets, an order that follows the hash seed.
    _normalise(root)
    in_root = ("chroot", str(root), "/usr/bin/python3")
    _run(*in_root, "-c", f"import {MUST_IMPORT}", env={"PYTHONHASHSEED": "0"})
    _normalise(root)
    return root


def _add_layer(layout: Path, source: Path, target: str, what: str) -> None:
    history = (f"--history.created={EPOCH}", f"--history.created_by={what}")
    _run("umoci", "insert", "--image", f"{layout}:{TAG}", *history, str(source), target)


def _build_base(work: Path, progress: Callable[[str], object]) -> Path:
    """Layout with the Python layer and the settings, still without the service."""
    progress("downloading Python from the distribution (about 16 MB)")
    packages = _fetch_packages(work)
    progress(f"making a small root folder out of {len(packages)} packages")
    root = _make_root(packages, work)
    progress("packing the Python layer")
    layout = work / "layout"
    _run("umoci", "init", "--layout", str(layout))
    _run("umoci", "new", "--image", f"{layout}:{TAG}")
    _add_layer(layout, root, "/", "Python of the distribution")
    _run("umoci", "config", "--image", f"{layout}:{TAG}", "--no-history", *CONFIG)
    return layout


def _build_demo(base: Path, work: Path) -> Path:
    """Copy of the base layout with the service on top."""
    layout = work / "layout"
    shutil.copytree(base, layout, ignore=shutil.ignore_patterns("blobs"))
    # Blobs never change once written, so both layouts may hold the same files.
    shutil.copytree(base / "blobs", layout / "blobs", copy_function=os.link)
    service = work / SERVICE.name
    shutil.copyfile(SERVICE, service)
    service.chmod(0o644)
    os.utime(service, (EPOCH_S, EPOCH_S))
    _add_layer(layout, service, f"/srv/{SERVICE.name}", "the demo's service")
    _run("umoci", "config", "--image", f"{layout}:{TAG}", "--no-history", f"--created={EPOCH}")
    _run("umoci", "gc", "--layout", str(layout))  # what the steps in between left behind
    return layout


def _cached(layout: Path, key: str, build: Callable[[Path], Path]) -> None:
    """Have `build` make the layout unless the one there was made under the same key."""
    note = layout.with_suffix(".key")
    if layout.is_dir() and note.exists() and note.read_text() == key:
        return
    with tempfile.TemporaryDirectory(prefix=f"{layout.name}-", dir=layout.parent) as scratch:
        work = Path(scratch)
        work.chmod(0o755)  # apt downloads as a user of its own, who has to reach the folder
        fresh = build(work)
        note.unlink(missing_ok=True)
        shutil.rmtree(layout, ignore_errors=True)
        fresh.rename(layout)
    note.write_text(key)


def build_demo_image(out_dir: Path, *, progress: Callable[[str], object] = print) -> Path:
    """Return an OCI layout folder below `out_dir` whose tag ``demo`` is the demo's service.

    Kept from the last time unless the service or this recipe changed since. Needs root, apt and umoci.
    Raises BuildError.
    """
    if os.geteuid() != 0:
        raise BuildError("building the demo image needs root; run it with sudo")
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    recipe = hashlib.sha256(Path(__file__).read_bytes() + platform.machine().encode()).hexdigest()
    service = hashlib.sha256(SERVICE.read_bytes()).hexdigest()
    base, demo = out_dir / "base", out_dir / TAG
    with (out_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _cached(base, recipe, lambda work: _build_base(work, progress))
        _cached(demo, f"{recipe} {service}", lambda work: _build_demo(base, work))
    return demo
