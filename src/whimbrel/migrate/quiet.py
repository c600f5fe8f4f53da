"""The moment for the freeze: when nobody in the service is in the middle of something.

A program that answers requests needs much of its memory only while it works on one. Between two of them there is less
to bring over, and whoever waits for the next answer waits for the freeze, not for the freeze and for work that begins
again with first touches of memory at a new place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

LOOK_EVERY_S = 0.0005
_AT_WORK = b"RD"  # running, or waiting for a disk or a page


def until_quiet(pids: Callable[[], Iterable[int]], limit_s: float) -> bool:
    """Return as soon as every thread of these processes sleeps, or after `limit_s`: then False."""
    deadline = time.monotonic() + limit_s
    while any(map(_at_work, pids())):
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _at_work(pid: int) -> bool:
    """Whether a thread of the process runs or would like to. One that is gone does not."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return any(_state(pid, thread) in _AT_WORK for thread in threads)


def _state(pid: int, thread: str) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/task/{thread}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b"X"
    try:
        text = os.read(fd, 512)
    except OSError:
        return b"X"
    finally:
        os.close(fd)
    return text[text.rfind(b")") + 2 :][:1]  # the name before it may hold anything, brackets too
