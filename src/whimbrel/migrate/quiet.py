"""The moment for the freeze: when nobody in the service is in the middle of something.

A program that answers requests needs much of its memory only while it works on one. Between two of them there is less
to bring over, and whoever waits for the next answer waits for the freeze, not for the freeze and for work that begins
again with first touches of memory at a new place.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

LOOK_EVERY_S = 0.0005
_AT_WORK = b"RD"  # running, or waiting for a disk or a page


def until_quiet(pids: Callable[[], Iterable[int]], limit_s: float) -> bool:
    """Return as soon as every thread of these processes sleeps, or after `limit_s`: then False."""
    deadline = time.monotonic() + limit_s
    busy: tuple[int, str] | None = None
    while True:
        if busy is None or not _at_work(*busy):  # the others are asked only when who worked last sleeps
            busy = next((thread for thread in _threads(pids()) if _at_work(*thread)), None)
            if busy is None:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_EVERY_S)


def _threads(pids: Iterable[int]) -> Iterator[tuple[int, str]]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield from ((pid, thread) for thread in os.listdir(f"/proc/{pid}/task"))


def _at_work(pid: int, thread: str) -> bool:
    """Whether the thread runs or would like to. One that is gone does not."""
    try:
        fd = os.open(f"/proc/{pid}/task/{thread}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        text = os.read(fd, 512)
    except OSError:
        return False
    finally:
        os.close(fd)
    return text[text.rfind(b")") + 2 :][:1] in _AT_WORK  # the name before it may hold anything, brackets too
