"""What users tell, as far as it is believed: the last report of each, and the handovers that took place."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan
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
from whimbrel.ran.sanity import Judge, Problem

VANISHED_S = 10.0
"""A user that reported nothing for so long is not planned for."""
FORGET_S = 3600.0
MOST_USERS = 100_000
RATE_OVER_S = 10.0
CLOCK_TOLERANCE_S = 2.0
"""A user's clock that differs more is named; what it differs counts in any case."""
CLOCK_SAMPLES = 50
REPORT_S = 1.0
"""Between two reports, at most."""
MOST_HANDOVER_MS = 60_000.0
OLDEST_HANDOVER_S, NEWEST_HANDOVER_S = 3600.0, 10.0
"""A handover is told at once, or when a controller answers again."""
USUAL_HANDOVER_MS = 500.0
LAST_DELAYS = 10

log = structlog.get_logger()


@dataclass
class UserState:
    """`heard_s` on the monotonic clock; `clocks`: the user's wall clock less our monotonic one, of its last reports."""

    name: str
    report: UserReport | None = None
    heard_s: float = -1e9
    clocks: deque[float] = field(default_factory=lambda: deque(maxlen=CLOCK_SAMPLES))
    handovers: deque[HandoverRecord] = field(default_factory=lambda: deque(maxlen=20))
    delays_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    processing_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    requests: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=200))
    judge: Judge = field(default_factory=lambda: Judge(frozenset()))
    elapsed_s: float = -1e9
    over_limit: int = 0
    delay_ms: float | None = None
    """Median of what the last reports said."""

    def took(self, delay_ms: float) -> None:
        self.delays_ms.append(delay_ms)
        self.delay_ms = median(list(self.delays_ms)[-LAST_DELAYS:])

    def take_clock(self, unix_s: float, now_s: float) -> None:
        """Of a report, at the time of its arrival. One that is off by more than reports are ever late is of a clock
        that was set."""
        ahead_s = unix_s - now_s
        if self.clocks and abs(ahead_s - max(self.clocks)) > CLOCK_TOLERANCE_S:
            self.clocks.clear()
        self.clocks.append(ahead_s)

    def clock_ahead_s(self, now_unix_s: float) -> float:
        """By how much the user's wall clock is ahead of one that shows `now_unix_s`; 0 while nothing is known. The
        way of a report takes time, and only makes its clock look late: the one that came soonest is nearest to the
        truth."""
        return max(self.clocks) + time.monotonic() - now_unix_s if self.clocks else 0.0

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
            event = self._take_handover(state, event)
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

    def moved(self, user: str) -> None:
        """Its service is on another server: what it took on the last one says nothing of this one."""
        if (state := self._states.get(user)) is not None:
            state.processing_ms.clear()
            state.delays_ms.clear()

    def remove(self, user: str) -> None:
        self._states.pop(user, None)
        self._vanished.discard(user)

    def _take_report(self, state: UserState, report: UserReport) -> None:
        now_s = time.monotonic()
        hears = tuple(one for one in report.hears if self._is_heard(state, one))
        self._take_clock(state, report, now_s)
        self._take_place(state, report)
        before = state.report
        state.report = replace(report, hears=hears)
        state.heard_s = now_s
        self._take_delay(state, report, now_s)
        if before is None or before.serving != report.serving or (report.wants and report.wants != before.wants):
            self._on_news()

    def _take_clock(self, state: UserState, report: UserReport, now_s: float) -> None:
        if problem := wrong(report.unix_s, 0, 1e11):
            self._absurd("clock", state.name, "a user's clock shows no time", problem)
            return
        state.take_clock(report.unix_s, now_s)
        ahead_s = state.clock_ahead_s(time.time())
        if abs(ahead_s) > CLOCK_TOLERANCE_S:
            text = "a user's clock is not ours: orders follow its own"
            self._complaints.tell(("clock", state.name), text, user=state.name, ahead_s=round(ahead_s, 1))

    def _take_place(self, state: UserState, report: UserReport) -> None:
        """Where it is decides nothing (what it hears does), but a place that cannot be is told of."""
        if isnan(report.x_m) or isnan(report.y_m):  # another network's users have none
            return
        judge, t_s = state.judge, report.elapsed_s
        if t_s < state.elapsed_s:  # its way began anew
            judge = state.judge = Judge(frozenset())
        state.elapsed_s = t_s
        verdict = judge.hear(t_s, report.x_m, report.y_m, {})
        if any(line.startswith(Problem.JUMP) for line in verdict.told):
            self._absurd("place", state.name, "a user jumped", f"to {report.x_m:g}, {report.y_m:g} m")
        elif verdict.rssi_dbm is not None:
            self._complaints.over(("place", state.name))

    def _take_handover(self, state: UserState, told: HandoverRecord) -> HandoverRecord:
        """As far as it can be believed: what cannot be is replaced by what is usual."""
        its_now_s = time.time() + state.clock_ahead_s(time.time())
        known = bool(state.clocks)
        first_s, last_s = (its_now_s - OLDEST_HANDOVER_S, its_now_s + NEWEST_HANDOVER_S) if known else (0.0, 1e11)
        if problem := wrong(told.unix_s, first_s, last_s):
            self._absurd("handover", state.name, "a handover's time cannot be: it is taken as of now", problem)
            told = replace(told, unix_s=its_now_s)
        if problem := wrong(told.interruption_ms, 0, MOST_HANDOVER_MS):
            self._absurd("interruption", state.name, "a handover cannot have taken so long: taken as usual", problem)
            return replace(told, interruption_ms=state.handover_ms)  # it is not learnt from
        state.handovers.append(told)
        self._take_along(state, told)
        return told

    def _take_along(self, state: UserState, told: HandoverRecord) -> None:
        """The last report is from before: until the next, nobody is to plan with what has happened since."""
        report, over_s = state.report, told.unix_s + told.interruption_ms / 1e3
        if report is None or told.error or report.serving != told.source or over_s + REPORT_S < report.unix_s:
            return
        state.report = replace(report, serving=told.target, wants="", forecast=None)

    def _absurd(self, kind: str, user: str, text: str, value: str, **facts: Any) -> None:
        """Told once for each kind, whatever the value is."""
        self._complaints.tell((kind, user), text, user=user, value=value, **facts)

    def _is_heard(self, state: UserState, heard: Hears) -> bool:
        if problem := wrong(heard.filtered_dbm, LEAST_DBM, MOST_DBM):
            self._absurd("rssi", state.name, "an RSSI is left out", problem, base_station=heard.base_station)
            return False
        self._complaints.over(("rssi", state.name))
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
                    self._absurd("delay", state.name, "a delay is left out", problem)
                else:
                    self._complaints.over(("delay", state.name))
                    keep(value)

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        for name, state in list(self._states.items()):
            if now_s - state.heard_s > FORGET_S:
                del self._states[name]
                self._vanished.discard(name)
