"""The image files that Whimbrel reads and writes itself: inventory, memory maps, page maps (TCP connections:
`connections`).

A CRIU image is two little-endian magic words, then entries, each a 32-bit length and a protobuf message.

**Holes instead of pages.** A lazy dump still pushes every page through pipes: 100 ms a GB, inside the freeze.
CRIU leaves a hole where an earlier dump ("parent") holds the page and the page is not soft-dirty. We give it a
parent that claims to hold all of the address space. Then it writes only *which* pages exist, whatever the memory
size, and the contents are ours to carry. Where the kernel tracks soft-dirty bits they must be cleared once
the tree is frozen; where it does not, they read as clean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

COMMON_MAGIC = 0x54564319
INVENTORY_MAGIC = 0x58313116
PAGEMAP_MAGIC = 0x56084025
MM_MAGIC = 0x57492820
CORE_MAGIC = 0x55053847
MOUNTS_MAGIC = 0x55563928

PE_PARENT, PE_LAZY, PE_PRESENT = 1, 2, 4
MAP_PRIVATE, MAP_ANONYMOUS, MAP_LOCKED, MAP_HUGETLB = 0x02, 0x20, 0x2000, 0x40000
MAP_GROWSDOWN = 0x0100
WIPE_ON_FORK = 1 << 18
"""The image keeps advice as bits, numbered as madvise(2) does."""
AREA_VSYSCALL, AREA_VDSO, AREA_VVAR = 1 << 2, 1 << 3, 1 << 12

ADDRESS_SPACE_PAGES = (1 << 47) // PAGE_BYTES
FAR_FUTURE_US = 1 << 62  # the parent claims to be younger than every process, so no pid looks reused

Ranges = npt.NDArray[np.uint64]
"""Shape (n, 2): start and end address in bytes, page-aligned, ascending, not overlapping."""


def _write(path: Path, magic: int, entries: Iterable[bytes]) -> None:
    parts = [struct.pack("<II", COMMON_MAGIC, magic)]
    for entry in entries:
        parts.append(struct.pack("<I", len(entry)))
        parts.append(entry)
    path.write_bytes(b"".join(parts))


def read_entries(path: Path, magic: int) -> Iterator[bytes]:
    """Raises StepFailed when it is no such image."""
    data = path.read_bytes()
    if len(data) < 8 or struct.unpack_from("<II", data) != (COMMON_MAGIC, magic):
        raise StepFailed(f"{path.name} is not the CRIU image it should be")
    at = 8
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            raise StepFailed(f"{path.name} is cut short")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def write_parent(directory: Path, ns_pids: Iterable[int]) -> None:
    """Write the parent dump that claims to hold every page of the given processes (pids inside the container)."""
    directory.mkdir(parents=True, exist_ok=True)
    inventory = pb.Inventory(img_version=2, fdinfo_per_id=True, ns_per_id=True, dump_uptime=FAR_FUTURE_US)
    body = inventory.SerializeToString()  # the inventory alone has no common magic: it tells the format's version
    (directory / "inventory.img").write_bytes(struct.pack("<II", INVENTORY_MAGIC, len(body)) + body)
    everything = pb.PagemapEntry(
        vaddr=0, compat_nr_pages=0, flags=PE_PRESENT, nr_pages=ADDRESS_SPACE_PAGES
    ).SerializeToString()
    for pages_id, ns_pid in enumerate(ns_pids, start=1):
        head = pb.PagemapHead(pages_id=pages_id).SerializeToString()
        _write(directory / f"pagemap-{ns_pid}.img", PAGEMAP_MAGIC, [head, everything])
        (directory / f"pages-{pages_id}.img").write_bytes(b"")


@dataclass(frozen=True)
class Pagemap:
    """Which pages of one process exist: `ranges` with the PE_* flags of each, and the number of its pages file."""

    ns_pid: int
    pages_id: int
    ranges: Ranges
    flags: npt.NDArray[np.uint32]


def pagemap_pids(images: Path) -> list[int]:
    """The processes (pids inside the container) that a dump in `images` holds page maps of."""
    return sorted(int(path.stem.removeprefix("pagemap-")) for path in images.glob("pagemap-[0-9]*.img"))


def read_pagemap(images: Path, ns_pid: int) -> Pagemap:
    entries = read_entries(images / f"pagemap-{ns_pid}.img", PAGEMAP_MAGIC)
    head = pb.PagemapHead.FromString(next(entries))
    ranges, flags = [], []
    for raw in entries:
        entry = pb.PagemapEntry.FromString(raw)
        pages = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
        ranges.append((entry.vaddr, entry.vaddr + pages * PAGE_BYTES))
        flags.append(entry.flags if entry.HasField("flags") else (PE_PARENT if entry.in_parent else PE_PRESENT))
    return Pagemap(ns_pid, head.pages_id, np.array(ranges, np.uint64).reshape(-1, 2), np.array(flags, np.uint32))


def holes_of(pagemap: Pagemap) -> npt.NDArray[np.bool_]:
    """Which entries have no contents in the pages file. Of a process without a parent's page map CRIU writes contents
    also of the pages that it marks as to come later ("lazy")."""
    holes: npt.NDArray[np.bool_] = (pagemap.flags & PE_PRESENT) == 0
    return holes


def present_pages(images: Path, ns_pid: int) -> int:
    """How many pages of a process a dump holds itself."""
    pages = read_pagemap(images, ns_pid)
    own = pages.ranges[(pages.flags & PE_PRESENT) != 0]
    return int((own[:, 1] - own[:, 0]).sum()) // PAGE_BYTES


def write_pagemap(images: Path, pagemap: Pagemap) -> None:
    def entries() -> Iterator[bytes]:
        yield pb.PagemapHead(pages_id=pagemap.pages_id).SerializeToString()
        for (start, end), flags in zip(pagemap.ranges.tolist(), pagemap.flags.tolist(), strict=True):
            pages = (end - start) // PAGE_BYTES
            yield pb.PagemapEntry(
                vaddr=start, compat_nr_pages=min(pages, 0xFFFFFFFF), flags=flags, nr_pages=pages
            ).SerializeToString()

    _write(images / f"pagemap-{pagemap.ns_pid}.img", PAGEMAP_MAGIC, entries())


def lazy_ranges(images: Path, ns_pid: int) -> Ranges:
    """Mappings whose pages may arrive after the restore: private, anonymous, not locked, no stack that grows.

    CRIU's own condition, ``vma_entry_can_be_lazy``, so that it registers a userfaultfd on them; of stacks it keeps the
    page at the stack pointer, we keep the whole. Memory that is wiped in children (MADV_WIPEONFORK) is left out, too:
    what would be placed in a child is what the kernel has just wiped there.
    """
    mm = pb.MmEntry.FromString(next(read_entries(images / f"mm-{ns_pid}.img", MM_MAGIC)))
    chosen = [
        (vma.start, vma.end)
        for vma in mm.vmas
        if vma.flags & MAP_ANONYMOUS
        and vma.flags & MAP_PRIVATE
        and not vma.flags & (MAP_LOCKED | MAP_HUGETLB | MAP_GROWSDOWN)
        and not vma.madv & WIPE_ON_FORK
        and not vma.status & (AREA_VDSO | AREA_VVAR | AREA_VSYSCALL)
    ]
    return np.array(chosen, np.uint64).reshape(-1, 2)


def write_mappings(images: Path, ns_pid: int, ranges: Ranges) -> None:
    """The memory map of a process with nothing but private anonymous mappings."""
    mm = pb.MmEntry()
    for start, end in ranges.tolist():
        mm.vmas.add(start=start, end=end, flags=MAP_PRIVATE | MAP_ANONYMOUS, pgoff=0, shmid=0, prot=3, status=0, fd=-1)
    _write(images / f"mm-{ns_pid}.img", MM_MAGIC, [mm.SerializePartialToString()])


def private_ranges(images: Path, ns_pid: int) -> Ranges:
    """Mappings of which a dump holds pages: the private ones without the droppable, which read like them in maps.
    Raises StepFailed where one is of huge TLB."""
    mm = pb.MmEntry.FromString(next(read_entries(images / f"mm-{ns_pid}.img", MM_MAGIC)))
    private = [vma for vma in mm.vmas if vma.flags & MAP_PRIVATE]
    if any(vma.flags & MAP_HUGETLB for vma in private):
        raise StepFailed("the service made private huge-TLB memory meanwhile, which cannot be moved yet")
    return np.array([(vma.start, vma.end) for vma in private], np.uint64).reshape(-1, 2)


def restart_ranges(images: Path) -> Ranges:
    """Pages that the kernel writes to when a restorer registers a thread's rseq area again, of all threads of a dump:
    while one of them lacks, the restore stands still. Which process a thread belongs to is not looked up."""
    pages: set[int] = set()
    for path in images.glob("core-*.img"):
        core = pb.CoreEntry.FromString(next(read_entries(path, CORE_MAGIC)))
        if core.thread_core.HasField("rseq_entry"):
            pages.add(core.thread_core.rseq_entry.rseq_abi_pointer // PAGE_BYTES * PAGE_BYTES)
    return np.array([(page, page + PAGE_BYTES) for page in sorted(pages)], np.uint64).reshape(-1, 2)


def forget_masters(images: Path) -> None:
    """Let mounts that receive mounts from outside of the container ("slaves") be private: their senders are mounts of
    the node that it comes from. CRIU would look for them below the mounts that are made ready for it."""
    for path in images.glob("mountpoints-*.img"):
        mounts = [pb.MountEntry.FromString(raw) for raw in read_entries(path, MOUNTS_MAGIC)]
        inside = {mount.shared_id for mount in mounts} - {0}
        for mount in mounts:
            if mount.master_id not in inside:
                mount.ClearField("master_id")
        _write(path, MOUNTS_MAGIC, (mount.SerializeToString() for mount in mounts))
