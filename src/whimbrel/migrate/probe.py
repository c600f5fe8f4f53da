"""How much memory a service has, and how much of it it writes: two rounds of the tracker, of which nothing is sent."""

from __future__ import annotations

import time

from whimbrel.memory.tracker import TreeTracker


def probed(root_pid: int, interval_s: float) -> tuple[int, int]:
    """(bytes that there are, bytes written in the `interval_s` after). The service runs on; it stands still for some
    milliseconds when the tracker is attached, and each page costs it a fault when it is written first. Blocks. Raises
    Refused, BadInput (no such process)."""
    with TreeTracker(root_pid) as tracker:
        first = tracker.scan()
        time.sleep(interval_s)
        second = tracker.scan()
    return sum(pages.size_bytes for pages in first), sum(pages.size_bytes for pages in second)
