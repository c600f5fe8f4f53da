"""After the resume: what was on its way when the service was frozen, and was lost, is sent again (`network.resend`)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from whimbrel.checkpoint.connections import unacknowledged
from whimbrel.model.connections import Connection, Unacknowledged
from whimbrel.model.errors import WhimbrelError
from whimbrel.network import netns
from whimbrel.network.port import ServicePort
from whimbrel.network.resend import MOST_SEGMENTS, send_again

LOOKS_S = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8)
"""So long after the resume: acknowledgements that the gateways held come at once, or where they held for long when they
are told; those of a user who is away later. From a second on the kernel sees to it."""
END_S = 2.0


class Resending:
    """In a thread of its own, which begins at once: `images` may be gone by the time that the service runs. `clock_s`:
    about when CRIU let the clocks of the connections go on, rather too late than too early."""

    def __init__(
        self, port: ServicePort, service: str, images: Path, clock_s: float, *, held_long: bool = False
    ) -> None:
        self._looks_s = LOOKS_S[1:] if held_long else LOOKS_S
        self._port, self._service, self._images, self._clock_s = port, service, images, clock_s
        self._runs = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resend", daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """The service runs, and its port is open."""
        self._runs.set()

    def end(self) -> None:
        """Until nothing more is sent again: a second after `go_on` at the latest."""
        self._thread.join(END_S)

    def _run(self) -> None:
        with contextlib.suppress(WhimbrelError, OSError):  # the service is gone, or moved on; the kernel will do it
            silent = self._port.silent(self._service)
            waiting = unacknowledged(self._images, silent) if silent else {}
            self._runs.wait()
            began_s = time.monotonic()
            for look_s in self._looks_s if waiting else ():
                time.sleep(max(0.0, began_s + look_s - time.monotonic()))
                lost = {each: size for each, size in self._port.silent(self._service).items() if each in waiting}
                if not lost:
                    return
                most = MOST_SEGMENTS if look_s == self._looks_s[0] else 1
                netns.call(self._port.path(self._service), partial(self._send, lost, waiting, most))

    def _send(self, lost: Mapping[Connection, int], waiting: Mapping[Connection, Unacknowledged], most: int) -> None:
        for connection, segment_bytes in lost.items():
            with contextlib.suppress(OSError):  # there may be no way to this one
                age_s = time.monotonic() - self._clock_s
                send_again(connection, waiting[connection], segment_bytes, age_s, most=most)
