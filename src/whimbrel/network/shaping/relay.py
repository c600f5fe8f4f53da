"""A link's delay in user space, for kernels without `netem`: every frame of one TAP goes to the other, some ms later.

The delay of a direction is constant, so a queue keeps the frames in order by itself. Nothing is dropped below
`HELD_BYTES` on the way; above, the newest is. The rate is the kernel's, at the sending interface.

Run as ``python -I -S relay.py FD_A FD_B MS_A_TO_B MS_B_TO_A``; imports nothing but the standard library, so that it
is up quickly and small. It ends when a device does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import time
from collections import deque

FRAME_BYTES = 12 + 14 + 4 + 65536  # virtio header, Ethernet with a tag, the largest segment
HELD_BYTES = 64 << 20  # 150 ms at 3.5 Gbit/s
READS_IN_TURN = 64  # frames that are due do not wait for a longer burst than this
_GONE = (errno.EBADFD, errno.ENODEV, errno.ENXIO)
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class Direction:
    """What is on its way from `source` to `sink`: (when due, frame), oldest first."""

    def __init__(self, source: int, sink: int, delay_s: float) -> None:
        self.source = source
        self._sink = sink
        self._delay_s = delay_s
        self._frames: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self.dropped = 0

    @property
    def due(self) -> float | None:
        """When the next frame is to leave, on the monotonic clock."""
        return self._frames[0][0] if self._frames else None

    def take(self) -> None:
        """Read what has arrived, a turn's worth at most."""
        for _ in range(READS_IN_TURN):
            try:
                frame = os.read(self.source, FRAME_BYTES)
            except BlockingIOError:
                return
            if self._held_bytes + len(frame) > HELD_BYTES:
                if not self.dropped:
                    print(f"more than {HELD_BYTES} bytes on their way: frames are dropped", file=sys.stderr, flush=True)
                self.dropped += 1
                continue
            self._held_bytes += len(frame)
            self._frames.append((time.monotonic() + self._delay_s, frame))

    def deliver(self) -> None:
        """Send on what is due."""
        frames, sink = self._frames, self._sink
        now = time.monotonic()
        while frames and frames[0][0] <= now:
            frame = frames.popleft()[1]
            self._held_bytes -= len(frame)
            try:
                os.write(sink, frame)
            except OSError as error:
                if error.errno in _GONE:
                    raise
                if error.errno not in (*_FULL, errno.EIO):  # EIO: the interface is down, as an unplugged cable
                    print(f"a frame of {len(frame)} bytes was refused: {error}", file=sys.stderr, flush=True)


def relay(tap_a: int, tap_b: int, delay_ab_s: float, delay_ba_s: float) -> None:
    """Until a device is gone (OSError) or the process is ended."""
    directions = (Direction(tap_a, tap_b, delay_ab_s), Direction(tap_b, tap_a, delay_ba_s))
    sources = [tap_a, tap_b]
    while True:
        due = [when for direction in directions if (when := direction.due) is not None]
        # select, not epoll: its timeout is in microseconds, epoll's in whole milliseconds
        readable, _, _ = select.select(sources, (), (), max(0.0, min(due) - time.monotonic()) if due else None)
        for direction in directions:
            if direction.source in readable:
                direction.take()
            direction.deliver()


def main(arguments: list[str]) -> None:
    tap_a, tap_b = int(arguments[0]), int(arguments[1])
    with contextlib.suppress(OSError):
        # ahead of all usual work: a relay that waits for the processor adds its wait to the delay
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        relay(tap_a, tap_b, float(arguments[2]) / 1e3, float(arguments[3]) / 1e3)
    except OSError as error:
        sys.exit(f"the link has ended: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
