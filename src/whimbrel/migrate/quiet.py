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
_AT_WORK = "RD"  # running, or waiting for a disk or a page


def until_quiet(pids: Callable[[], Iterable[int]], limit_s: float) -> bool:
    """Return as soon as every thread of these processes sleeps, or after `limit_s`: then False."""
    deadline = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        known: dict[tuple[int, str], int] = {}
        while True:
            if not any(map(_at_work, known.values())):  # only now is it asked whether there are others
                for pid, thread in set(_threads(pids())) - known.keys():
                    with contextlib.suppress(OSError):
                        fd = os.open(f"/proc/{pid}/task/{thread}/stat", os.O_RDONLY | os.O_CLOEXEC)
                        stack.callback(os.close, fd)
                        known[pid, thread] = fd
                if not any(map(_at_work, known.values())):
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_EVERY_S)


def _threads(pids: Iterable[int]) -> Iterator[tuple[int, str]]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield from ((pid, thread) for thread in os.listdir(f"/proc/{pid}/task"))


def _at_work(stat_fd: int) -> bool:
    """Whether the thread runs or would like to. One that is gone does not."""
    try:
        text = os.pread(stat_fd, 512, 0).decode(errors="replace")
    except OSError:
        return False
    return text[text.rfind(")") + 2 :][:1] in _AT_WORK  # the name before it may hold anything, brackets too
