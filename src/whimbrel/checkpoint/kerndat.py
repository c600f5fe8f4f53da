"""CRIU's cache of kernel features, and the one bit of it that Whimbrel sets.

CRIU refuses to leave holes for pages that a parent dump holds (see `images`) unless the kernel can track soft-dirty
bits. Our holes do not rest on soft-dirty bits but on our own tracker, so where the kernel lacks them we set the
bit in the cache that our workers see (a file on the node's own tmpfs; the system's /run/criu.kdat is never touched).
Every byte around the bit is checked first: a cache of another layout is left as it is, and the dump then carries
pages through pipes (slower by about 100 ms a GB, otherwise the same).
"""

from __future__ import annotations

import struct
from pathlib import Path

from whimbrel.checkpoint.swrk import CriuWorker, launch_child, prepare_run_dir

# struct kerndat_s of CRIU 4.2: two magics, shmem_dev, last_cap, zero_page_pfn, has_dirty_track, has_memfd,
# has_memfd_hugetlb, has_fdinfo_lock, task_size
_HEAD = struct.Struct("<IIQi4xQ4B4xQ")
_DIRTY_TRACK_AT = 32


def ensure_cache(run_dir: Path) -> bool:
    """Make the cache (once, about 40 ms) and allow holes in it. Returns whether dumps can leave holes.

    Raises StepFailed when CRIU does not work here at all.
    """
    cache = prepare_run_dir(run_dir) / "criu.kdat"
    if not cache.exists():
        worker = CriuWorker(netns=Path("/proc/self/ns/net"), run_dir=run_dir, launch=launch_child)
        try:
            worker.detect_features()
        finally:
            worker.kill()
    return cache.exists() and _allow_holes(cache)


def _allow_holes(cache: Path) -> bool:
    data = bytearray(cache.read_bytes())
    if len(data) < _HEAD.size:
        return False
    _, _, _, last_cap, _, dirty_track, memfd, memfd_huge, fdinfo_lock, task_size = _HEAD.unpack_from(data)
    known_cap = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    flags_are_flags = all(flag in (0, 1) for flag in (dirty_track, memfd, memfd_huge, fdinfo_lock))
    if last_cap != known_cap or not flags_are_flags or not 1 << 38 <= task_size <= 1 << 57:
        return False
    if not dirty_track:
        data[_DIRTY_TRACK_AT] = 1
        replacement = cache.with_suffix(".new")
        replacement.write_bytes(data)
        replacement.replace(cache)
    return True
