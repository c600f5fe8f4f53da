"""What users tell, as far as it is believed: the last report of each, and the handovers that took place."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import structlog
from msgspec.structs import replace

from whimbrel.controller.planning.complaints import Complaints
from whimbrel.model.edge import LEAST_DBM, MOST_DBM
from whimbrel.model.errors import BadInput
from whimbrel.model.numbers import wrong
from whimbrel.model.radio import HandoverRecord, Hears, LinkState, UserEvent, UserReport
from whimbrel.model.service import NAME_PATTERN

VANISHED_S = 10.0
"""A user that reported nothing for so long is not planned for."""
FORGET_S = 3600.0
MOST_USERS = 100_000
RATE_OVER_S = 10.0
CLOCK_TOLERANCE_S = 2.0
"""Clocks that differ less are taken as one."""
USUAL_HANDOVER_MS = 500.0
LAST_DELAYS = 10

log = structlog.get_logger()


@dataclass
class UserState:
    """`heard_s` on the monotonic clock; `clock_ahead_s`: by how much the user's wall clock is ahead of ours."""

    name: str
    report: UserReport | None = None
    heard_s: float = -1e9
    clock_ahead_s: float = 0.0
    handovers: deque[HandoverRecord] = field(default_factory=lambda: deque(maxlen=20))
    delays_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    processing_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    requests: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=200))
    over_limit: int = 0
    delay_ms: float | None = None
    """Median of what the last reports said."""

    def took(self, delay_ms: float) -> None:
        self.delays_ms.append(delay_ms)
        self.delay_ms = median(list(self.delays_ms)[-LAST_DELAYS:])

    @property
    def handover_ms(self) -> float:
        """T_ho, from the handovers that were."""
        took = [one.interruption_ms for one in self.handovers if not one.error]
        return median(took) if took else USUAL_HANDOVER_MS

    def tasks_per_s(self, now_s: float) -> float | None:
        """Of the last seconds; None while too little was heard, and until the first request."""
        if not any(count for _, count in self.requests):
            return None
        recent = [(at_s, count) for at_s, count in self.requests if at_s > now_s - RATE_OVER_S]
        if len(recent) < 3 or now_s - recent[0][0] < 1.0:
            return None
        return sum(count for _, count in recent[1:]) / (recent[-1][0] - recent[0][0])


class Users:
    """`take` gets every event. `on_news` is called, in the event loop, when a user's radio or delay calls for a plan;
    who waits for one handover does so by `handed_over`."""

    def __init__(
        self,
        on_news: Callable[[], None] = lambda: None,
        on_complaint: Callable[[str, dict[str, Any]], None] = lambda text, facts: None,
    ) -> None:
        self._states: dict[str, UserState] = {}
        self._waiting: dict[str, asyncio.Future[HandoverRecord]] = {}
        self._on_news = on_news
        self._complaints = Complaints(on_complaint)
        self._vanished: set[str] = set()
        self.listeners: list[Callable[[UserEvent], None]] = []

    def take(self, user: str, event: UserEvent) -> None:
        """Raises BadInput for an event of another user, and for a name that cannot be one."""
        if not NAME_PATTERN.fullmatch(user):
            raise BadInput(f"user name {user!r} is not valid: use 1 to 40 of a-z, 0-9 and '-', not at an end")
        if event.user != user:
            raise BadInput(f"an event of user {event.user!r} was posted for {user}: post it to its own address")
        if user not in self._states:
            self._forget_old()
            if len(self._states) >= MOST_USERS:
                raise BadInput(f"{MOST_USERS} users report already: no more are taken")
        state = self._states.setdefault(user, UserState(user))
        if isinstance(event, UserReport):
            self._take_report(state, event)
        elif isinstance(event, HandoverRecord):
            if not wrong(event.interruption_ms, 0, 60_000):
                state.handovers.append(event)
            waiting = self._waiting.pop(event.order, None) if event.order else None
            if waiting is not None and not waiting.done():
                waiting.set_result(event)
            self._on_news()
        for listener in self.listeners:
            listener(event)

    def handed_over(self, order: str) -> asyncio.Future[HandoverRecord]:
        """Done when the user tells that this order was carried out, or could not be."""
        if order not in self._waiting:
            self._waiting[order] = asyncio.get_running_loop().create_future()
        return self._waiting[order]

    def wait_no_more(self, order: str) -> None:
        self._waiting.pop(order, None)

    def get(self, user: str) -> UserState | None:
        return self._states.get(user)

    def all(self) -> list[UserState]:
        return list(self._states.values())

    def present(self, now_s: float | None = None) -> dict[str, UserState]:
        """Those who reported lately. One who vanished is named once."""
        now_s = time.monotonic() if now_s is None else now_s
        found = {}
        for name, state in self._states.items():
            if state.report is None:
                continue
            silent_s = now_s - state.heard_s
            if silent_s <= VANISHED_S:
                found[name] = state
                if name in self._vanished:  # asked for often, and of many: mostly there is nothing to be done
                    self._vanished.discard(name)
                    self._complaints.over(("vanished", name))
            else:
                self._vanished.add(name)
                self._complaints.tell(("vanished", name), "a user vanished: its service stays where it is", user=name)
        return found

    def remove(self, user: str) -> None:
        self._states.pop(user, None)
        self._vanished.discard(user)

    def _take_report(self, state: UserState, report: UserReport) -> None:
        now_s, now_unix_s = time.monotonic(), time.time()
        hears = tuple(one for one in report.hears if self._is_heard(state, one))
        ahead_s = report.unix_s - now_unix_s
        if wrong(report.unix_s, 0, 1e11):
            self._complaints.tell(("clock", state.name), "a user's clock shows no time", user=state.name)
            ahead_s = 0.0
        state.clock_ahead_s = ahead_s if abs(ahead_s) > CLOCK_TOLERANCE_S else 0.0
        if state.clock_ahead_s:
            self._complaints.tell(
                ("clock", state.name), "a user's clock is not ours: orders follow its own", user=state.name,
                ahead_s=round(ahead_s, 1),
            )  # fmt: skip
        before = state.report
        state.report = replace(report, hears=hears)
        state.heard_s = now_s
        self._take_delay(state, report, now_s)
        if before is None or before.serving != report.serving or (report.wants and report.wants != before.wants):
            self._on_news()

    def _is_heard(self, state: UserState, heard: Hears) -> bool:
        key = ("rssi", state.name, heard.base_station)
        if problem := wrong(heard.filtered_dbm, LEAST_DBM, MOST_DBM):
            text = f"an RSSI is left out: {problem}"
            self._complaints.tell(key, text, user=state.name, base_station=heard.base_station)
            return False
        self._complaints.over(key)
        return True

    def _take_delay(self, state: UserState, report: UserReport, now_s: float) -> None:
        delay = report.delay
        count = delay.requests if delay is not None and not wrong(delay.requests, 0, 1e7) else 0
        state.requests.append((now_s, count))
        if delay is None or report.state is not LinkState.CONNECTED:
            return
        for value, keep in ((delay.p50_ms, state.took), (delay.processing_ms, state.processing_ms.append)):
            if value is not None:
                if problem := wrong(value, 0, 3.6e6):
                    self._complaints.tell(("delay", state.name), f"a delay is left out: {problem}", user=state.name)
                else:
                    keep(value)

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        for name, state in list(self._states.items()):
            if now_s - state.heard_s > FORGET_S:
                del self._states[name]
                self._vanished.discard(name)
