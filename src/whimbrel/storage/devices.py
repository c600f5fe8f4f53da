"""The container's /dev, as a folder of its writable layer, and its /dev/shm.

What an image has in its own /dev is hidden. Nodes here are harmless on the host (the folder above is closed
to others) and in the container limited by its devices control group.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_FOLDERS = ("pts", "shm", "mqueue")
# null, zero, full, random, urandom; tty, console, ptmx: every container has them, and they lead to nothing of the host
_HARMLESS = {*((1, minor) for minor in (3, 5, 7, 8, 9)), *((5, minor) for minor in (0, 1, 2))}
SHM_OPTIONS = "mode=1777,size=64m"


def fill_dev(dev: Path) -> None:
    """Make the usual nodes, links and mount points in `dev`; what exists stays."""
    dev.mkdir(mode=0o755, exist_ok=True)
    os.setxattr(dev, "trusted.overlay.opaque", b"y")
    for name, (major, minor) in _NODES.items():
        if not os.path.lexists(dev / name):
            os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            os.chmod(dev / name, 0o666)  # mknod's mode went through the umask
    for name, target in _LINKS.items():
        if not os.path.lexists(dev / name):
            os.symlink(target, dev / name)
    for name in _FOLDERS:
        (dev / name).mkdir(mode=0o755, exist_ok=True)


def is_standard_node(path: str, mode: int) -> bool:
    """Whether `path` (relative to the layer) is one of the nodes that each node makes for itself."""
    parent, _, name = path.rpartition("/")
    return parent == "dev" and name in _NODES and stat.S_ISCHR(mode)


def is_harmless(device: tuple[int, int]) -> bool:
    """Whether a character device may be made for a container, by (major, minor)."""
    return device in _HARMLESS
