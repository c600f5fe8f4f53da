"""Trying kernel features, on our own memory and in places that are removed again."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute, NetlinkError

from whimbrel.memory.uffd import UFFD_USER_MODE_ONLY, Scanner, enable, register
from whimbrel.model.units import PAGE_BYTES
from whimbrel.network import netns
from whimbrel.runtime.cgroups import hierarchies
from whimbrel.storage.layer import mount_overlay, unmount

_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
PAGES = 16


@contextlib.contextmanager
def _own_pages() -> Iterator[tuple[mmap.mmap, int]]:
    """Some private anonymous pages, present, and their address."""
    memory = mmap.mmap(-1, PAGES * PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"\1" * len(memory))
    view = ctypes.c_char.from_buffer(memory)
    try:
        yield memory, ctypes.addressof(view)
    finally:
        del view
        memory.close()


def write_tracking_fault() -> str | None:
    """Track pages of our own, write two of them, look which were found. None: exactly those.

    Raises OSError where the kernel refuses a step.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY
    uffd = libc.syscall(_USERFAULTFD[platform.machine()], flags)
    if uffd < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"userfaultfd: {os.strerror(number)}")
    try:
        with _own_pages() as (memory, start), open("/proc/self/pagemap", "rb") as pagemap:
            end = start + len(memory)
            enable(uffd)
            register(uffd, start, end)
            scanner = Scanner(PAGES)
            scanner.populated(pagemap.fileno(), start, end)
            written = (3, 11)
            for page in written:
                memory[page * PAGE_BYTES] = 2
            found = scanner.written(pagemap.fileno(), start, end, rearm=True)
            again = scanner.written(pagemap.fileno(), start, end, rearm=True)
    finally:
        os.close(uffd)
    expected = np.array([[start + n * PAGE_BYTES, start + (n + 1) * PAGE_BYTES] for n in written])
    if not np.array_equal(found, expected) or len(again):
        return "write tracking reports other pages than the ones written"
    return None


def missing_links() -> list[str]:
    """Kinds of links that cannot be made, tried in a throw-away network namespace. Raises WhimbrelError."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-check-") as scratch:
        place = Path(scratch) / "netns"
        netns.create(place)
        try:
            return netns.call(place, _try_links)
        finally:
            netns.remove(place)


def _try_links() -> list[str]:
    missing = []
    with IPRoute() as ip:
        for kind, options in (
            ("veth", {"peer": "check1"}),
            ("bridge", {}),
            ("vxlan", {"vxlan_id": 77, "vxlan_port": 4789, "vxlan_local": "127.0.0.1"}),
        ):
            try:
                ip.link("add", ifname="check0", kind=kind, **options)
                ip.link("del", ifname="check0")
            except NetlinkError:
                missing.append(kind)
    return missing


def try_overlay(scratch: Path) -> None:
    """Mount an overlay below `scratch`, write through it. Raises WhimbrelError, OSError."""
    lower, upper, work, target = (scratch / name for name in ("lower", "upper", "work", "target"))
    for folder in (lower, upper, work, target):
        folder.mkdir()
    (lower / "file").write_text("below")
    mount_overlay(lower, upper, work, target)
    try:
        (target / "file").write_text("above")
        if (lower / "file").read_text() != "below" or (upper / "file").read_text() != "above":
            raise OSError("overlayfs wrote into the lower layer")
    finally:
        unmount(target)


def unwritable_cgroups() -> list[Path] | None:
    """Hierarchies in which no group can be made; None when there is no hierarchy at all."""
    refused = []
    for hierarchy in hierarchies():
        group = hierarchy / f"whimbrel-check-{os.getpid()}"
        try:
            group.mkdir()
            group.rmdir()
        except OSError:
            refused.append(hierarchy)
    return refused if hierarchies() else None
