"""The user's application: a workload's client, kept running, and every request of it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence

from whimbrel.bench.probe import Probe
from whimbrel.client.report import Settled
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.radio import DelayFigures, RequestTimes

RETRY_S = 1.0
NS_PER_MS = 1e6


class Application:
    """Runs the client that `make` gives, in a thread of its own; a client that ended or a service that does not answer
    is told once and tried again. `on_requests` gets every request once, `figures` what was settled since it was called
    last."""

    def __init__(
        self,
        user: str,
        make: Callable[[], Probe],
        on_requests: Callable[[RequestTimes], None],
        on_trouble: Callable[[str], None],
        *,
        every_s: float = 0.2,
    ) -> None:
        self._user, self._make, self._every_s = user, make, every_s
        self._on_requests, self._on_trouble = on_requests, on_trouble
        self._epoch_s = time.time() - time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._fresh: list[float | None] = []
        self._worked: list[float] = []
        self._in_trouble = False
        self._thread = threading.Thread(target=self._work, name="application", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the client; the last requests are told before."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(30.0)

    def figures(self) -> DelayFigures | None:
        """Of the requests settled since the last call; None when there was none."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
            worked, self._worked = self._worked, []
        if not fresh:
            return None
        answered = [delay for delay in fresh if delay is not None]
        if not answered:
            return DelayFigures(requests=len(fresh), lost=len(fresh))
        return DelayFigures(
            requests=len(fresh),
            lost=len(fresh) - len(answered),
            mean_ms=round(statistics.fmean(answered), 3),
            p50_ms=round(statistics.median(answered), 3),
            max_ms=round(max(answered), 3),
            processing_ms=round(statistics.fmean(worked), 3) if any(worked) else None,
        )

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                with self._make() as probe:
                    self._in_trouble = False
                    while not self._stop.wait(self._every_s):
                        self._take(probe.settled())
                    self._take(probe.settled())
            except WhimbrelError as error:
                if not self._in_trouble:
                    self._in_trouble = True
                    self._on_trouble(f"the application: {error}; trying again")
                self._stop.wait(RETRY_S)

    def _take(self, settled: Settled) -> None:
        for protocol, rows in (("tcp", settled.tcp), ("udp", settled.udp)):
            if not rows:
                continue
            delays = tuple(_delay_ms(row) for row in rows)
            with self._lock:
                self._fresh.extend(delays)
                self._worked.extend(row[2] / NS_PER_MS for row in rows if row[1])
            self._on_requests(self._times(protocol, rows, delays))

    def _times(
        self, protocol: str, rows: Sequence[tuple[int, int, int]], delays: tuple[float | None, ...]
    ) -> RequestTimes:
        worked = tuple(round(row[2] / NS_PER_MS, 3) for row in rows)
        return RequestTimes(
            user=self._user,
            protocol=protocol,
            sent_unix_s=tuple(round(self._epoch_s + row[0] / 1e9, 6) for row in rows),
            delays_ms=delays,
            processing_ms=worked if any(worked) else (),
        )


def _delay_ms(row: tuple[int, int, int]) -> float | None:
    sent_ns, answered_ns, _ = row
    return round((answered_ns - sent_ns) / NS_PER_MS, 3) if answered_ns else None
