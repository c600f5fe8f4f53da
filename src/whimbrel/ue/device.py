"""The device: at each step it moves, listens, decides or obeys, and reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from whimbrel.model.errors import WhimbrelError
from whimbrel.model.radio import (
    DelayFigures,
    HandoverForecast,
    HandoverOrder,
    HandoverRecord,
    Hears,
    UserEvent,
    UserNote,
    UserReport,
)
from whimbrel.ran.handover import Decision, Reason
from whimbrel.ran.mobility import Place, Track
from whimbrel.ran.pathloss import Air
from whimbrel.ran.port import HandedOver, Radio
from whimbrel.ran.user import Seen, UserRadio
from whimbrel.ue.orders import OrderBook


class Decides(StrEnum):
    """Who decides when the user is handed over. Without coverage the user looks for a station by itself in any case, as
    every phone does (3GPP TS 38.331, clause 5.3.7)."""

    USER = "user"
    NETWORK = "network"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`interval_s` between measurements, `forecast_every_s` and `duration_s` on the path's clock, which runs `speed_up`
    times as fast as the wall's; `duration_s` 0: until the path's end (for ever on one without). The radio and the
    application are real and are not sped up."""

    interval_s: float = 0.2
    forecast_every_s: float = 1.0
    duration_s: float = 0.0
    speed_up: float = 1.0
    decides: Decides = Decides.USER


@dataclass
class Under:
    """A handover that a thread carries out; `done` or `error` when it is over."""

    target: str
    reason: Reason
    order: HandoverOrder | None
    source: str
    unix_s: float
    elapsed_s: float
    thread: threading.Thread | None = None
    done: HandedOver | None = None
    error: str = ""


class Device:
    """One user. `tell` gets every event; `figures` the application's delays since it was called last."""

    def __init__(
        self,
        name: str,
        air: Air,
        track: Track,
        view: UserRadio,
        radio: Radio,
        tell: Callable[[UserEvent], None],
        settings: Settings,
        *,
        figures: Callable[[], DelayFigures | None] | None = None,
    ) -> None:
        self.name = name
        self.orders = OrderBook(name)
        self._air, self._track, self._view, self._radio = air, track, view, radio
        self._tell, self._settings, self._figures = tell, settings, figures
        self._under: Under | None = None
        self._elapsed_s = 0.0
        self._number = 0
        self._begun = False
        self._forecast: HandoverForecast | None = None
        self._forecast_s = -1e9

    def note(self, kind: str, text: str) -> None:
        """Tell something else; from any thread."""
        self._tell(UserNote(user=self.name, unix_s=time.time(), elapsed_s=self._elapsed_s, kind=kind, text=text))

    def order(self, order: HandoverOrder) -> None:
        """Take an order; from any thread."""
        if problem := self.orders.add(order):
            self.note("order", problem)

    def listen_first(self) -> None:
        """Be at a base station before anything else is begun, if one can be heard at all."""
        self.note("begin", f"{len(self._air.stations)} base stations, a way of {self._track.duration_s:g} s")
        self._step(0)
        self._begun = True

    def run(self, stop: threading.Event) -> None:
        """Until the end of the path, of the duration, or `stop`. A handover under way is waited for."""
        settings = self._settings
        if not self._begun:
            self.listen_first()
        begin_s = time.monotonic()
        step_s = settings.interval_s / settings.speed_up
        step = 1
        self._wait(stop, begin_s + step_s)
        while not stop.is_set() and not self._is_over():
            self._step(step)
            # a step that comes too late is left out, the next one is on time
            step = max(step + 1, int((time.monotonic() - begin_s) / step_s))
            self._wait(stop, begin_s + step * step_s)
        if self._under is not None and self._under.thread is not None:
            self._under.thread.join()
            self._collect()
        self.note("end", "stopped" if stop.is_set() else "the way is over")

    def _is_over(self) -> bool:
        duration_s = self._settings.duration_s
        return self._elapsed_s >= duration_s if duration_s else self._track.is_over(self._elapsed_s)

    def _wait(self, stop: threading.Event, due_s: float) -> None:
        """Until the next step; orders that are due meanwhile are begun on time."""
        while not stop.is_set() and (left_s := due_s - time.monotonic()) > 0:
            order_s = self.orders.next_unix_s()
            until_order_s = left_s if order_s is None else max(0.0, order_s - time.time())
            if until_order_s < left_s and self._under is None:
                stop.wait(until_order_s)
                self._obey()
            else:
                stop.wait(min(left_s, 0.05))

    def _step(self, step: int) -> None:
        self._elapsed_s = step * self._settings.interval_s
        place = self._track.at(self._elapsed_s)
        self._collect()
        heard = self._air.measure(place.x_m, place.y_m, step)
        seen = self._view.hear(self._elapsed_s, place.x_m, place.y_m, place.speed_m_per_s, heard)
        for line in seen.told:
            kind, _, text = line.partition(": ")
            self.note(kind, text)
        self._obey()
        wants = self._decide(seen.decision)
        if self._elapsed_s - self._forecast_s >= self._settings.forecast_every_s - 1e-9:
            self._forecast, self._forecast_s = self._view.forecast(seed=step + 1), self._elapsed_s
        self._report(place, heard, seen, wants)

    def _decide(self, decision: Decision | None) -> str:
        """Carry a decision of the user's own out, if that is for the user to do; else what it would like."""
        if decision is None or self._under is not None:
            return ""
        if decision.reason is Reason.STRONGER and self._settings.decides is Decides.NETWORK:
            return decision.target
        if decision.reason is Reason.OUT_OF_COVERAGE:
            self._detach()
        elif decision.reason is Reason.FIRST:
            self._attach(decision.target)
        else:
            self._begin(decision.target, decision.reason, None)
        return ""

    def _obey(self) -> None:
        if self._under is not None:
            return
        order = self.orders.due(time.time())
        if order is None:
            return
        if order.target not in self._air.stations:
            self.note("order", f"there is no base station {order.target!r}: the order was not carried out")
        elif order.target != self._view.state.serving:
            if self._view.state.serving is None:
                self._attach(order.target)
            else:
                self._begin(order.target, Reason.ORDERED, order)

    def _attach(self, target: str) -> None:
        try:
            self._radio.attach(self.name, target)
        except WhimbrelError as error:
            self.note("radio", str(error))
            self._view.begun(target)
            self._view.failed()
            return
        self._view.begun(target)
        self._view.finished()
        self.note("attached", target)

    def _detach(self) -> None:
        was = self._view.state.serving
        try:
            self._radio.detach(self.name)
        except WhimbrelError as error:
            self.note("radio", str(error))
            return
        self._view.lost()
        self.note("out-of-coverage", f"{was} is not heard any more, nor is any other")

    def _begin(self, target: str, reason: Reason, order: HandoverOrder | None) -> None:
        under = Under(target, reason, order, self._view.state.serving or "", time.time(), self._elapsed_s)

        def work() -> None:
            try:
                under.done = self._radio.hand_over(self.name, target)
            except WhimbrelError as error:
                under.error = str(error)
            except Exception as error:  # a radio is a plug-in: whatever it does, the user goes on
                under.error = f"{type(error).__name__}: {error}"

        self._view.begun(target)
        self._under = under
        under.thread = threading.Thread(target=work, name="handover", daemon=True)
        under.thread.start()

    def _collect(self) -> None:
        """Take note of a handover that is over."""
        under = self._under
        if under is None or under.thread is None or under.thread.is_alive():
            return
        self._under = None
        if under.done is None:
            self._view.failed()
        else:
            self._view.finished()
        self._forecast_s = -1e9  # what was forecast has come true
        self._tell(
            HandoverRecord(
                user=self.name,
                source=under.done.source if under.done else under.source,
                target=under.target,
                reason=under.reason.value,
                unix_s=under.done.began_unix_s if under.done else under.unix_s,
                elapsed_s=under.elapsed_s,
                interruption_ms=round(under.done.interruption_ms, 3) if under.done else 0.0,
                ordered=under.order is not None,
                order=under.order.id if under.order else "",
                error=under.error,
            )
        )

    def _report(self, place: Place, heard: dict[str, float], seen: Seen, wants: str) -> None:
        self._number += 1
        hears = [
            Hears(base_station=name, rssi_dbm=level, filtered_dbm=round(seen.filtered_dbm[name], 2))
            for name, level in heard.items()
            if name in seen.filtered_dbm
        ]
        self._tell(
            UserReport(
                user=self.name,
                number=self._number,
                unix_s=time.time(),
                elapsed_s=round(self._elapsed_s, 6),
                x_m=round(place.x_m, 3),
                y_m=round(place.y_m, 3),
                speed_m_per_s=round(place.speed_m_per_s, 3),
                serving=self._view.state.serving or "",
                state=self._view.link,
                hears=tuple(sorted(hears, key=lambda each: -each.filtered_dbm)),
                wants=wants,
                delay=self._figures() if self._figures is not None else None,
                forecast=_since(self._forecast, self._elapsed_s - self._forecast_s, self._settings.speed_up),
                problems=seen.told,
            )
        )


def _since(forecast: HandoverForecast | None, age_s: float, speed_up: float) -> HandoverForecast | None:
    """A forecast made a moment ago on the path's clock, counted from now on the wall's."""
    if forecast is None:
        return None
    names = ("median_s", "early_s", "late_s")
    times = {name: round(max(0.0, getattr(forecast, name) - age_s) / speed_up, 3) for name in names}
    return msgspec.structs.replace(forecast, horizon_s=round(forecast.horizon_s / speed_up, 3), **times)
