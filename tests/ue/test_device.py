"""The device on a way past three base stations, with a radio that moves nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from whimbrel.lab import topology
from whimbrel.model.errors import StepFailed
from whimbrel.model.radio import HandoverOrder, HandoverRecord, LinkState, UserEvent, UserNote, UserReport
from whimbrel.network.overlay import wait_until
from whimbrel.ran.layout import RadioLayout
from whimbrel.ran.mobility import Leg, walk
from whimbrel.ran.pathloss import PathLoss
from whimbrel.ran.port import HandedOver, Radio
from whimbrel.ran.user import UserRadio
from whimbrel.ue.device import Decides, Device, Settings
from whimbrel.ue.idle import IdleRadio

SHIPPED = topology.load(Path("walk")).radio
assert SHIPPED is not None
INTERRUPTION_MS = 30.0


class Run:
    """A device in a thread of its own, and all that it tells."""

    def __init__(self, radio: Radio | None = None, layout: RadioLayout = SHIPPED, length_m: float = 100.0,
                 **settings: Any) -> None:  # fmt: skip
        self.events: list[UserEvent] = []
        self.stop = threading.Event()
        air = layout.air()
        track = walk([Leg(0, 5, 2.0), Leg(length_m, 5, 2.0)], "way")
        view = UserRadio(air, layout.handover)
        radio = radio or IdleRadio(INTERRUPTION_MS)
        told = Settings(**{"speed_up": 20.0, "interval_s": 0.4, **settings})
        self.device = Device("ue-1", air, track, view, radio, self.events.append, told)
        self._thread = threading.Thread(target=self.device.run, args=(self.stop,), daemon=True)
        self._thread.start()

    def to_its_end(self) -> Run:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self

    def of(self, kind: type) -> list[Any]:
        return [event for event in list(self.events) if isinstance(event, kind)]

    def notes(self, kind: str) -> list[str]:
        return [note.text for note in self.of(UserNote) if note.kind == kind]


def test_a_walk_past_three_stations() -> None:
    run = Run().to_its_end()
    assert run.notes("attached") == ["gw-1"]
    handovers = run.of(HandoverRecord)
    assert [(each.source, each.target, each.reason) for each in handovers] == [
        ("gw-1", "gw-2", "stronger"), ("gw-2", "gw-3", "stronger")]  # fmt: skip
    assert all(each.interruption_ms >= INTERRUPTION_MS and not each.ordered and not each.error for each in handovers)
    reports = run.of(UserReport)
    assert [report.number for report in reports] == list(range(1, len(reports) + 1))
    assert [report.serving for report in reports if report.state is LinkState.CONNECTED][-1] == "gw-3"
    for report in reports:
        levels = [each.filtered_dbm for each in report.hears]
        assert levels == sorted(levels, reverse=True)
        assert not report.problems
    assert any(report.forecast is not None and report.forecast.source == "slope" for report in reports)
    assert reports[-1].x_m == pytest.approx(100, abs=5)
    for event in run.events:  # what goes over the wire comes back as what it was
        assert msgspec.json.decode(msgspec.json.encode(event), type=UserEvent) == event


def test_where_the_network_decides_the_user_says_what_it_would_like_and_obeys() -> None:
    run = Run(decides=Decides.NETWORK, speed_up=10.0)
    assert wait_until(lambda: any(report.wants == "gw-2" for report in run.of(UserReport)), 20)
    assert not run.of(HandoverRecord)
    at_unix_s = time.time() + 0.3
    run.device.order(HandoverOrder(user="ue-1", target="gw-2", at_unix_s=at_unix_s, id="h1"))
    run.device.order(HandoverOrder(user="ue-1", target="gw-9"))
    run.device.order(HandoverOrder(user="ue-2", target="gw-2"))
    assert wait_until(lambda: bool(run.of(HandoverRecord)), 10)
    run.stop.set()
    run.to_its_end()
    (done,) = run.of(HandoverRecord)
    assert (done.target, done.ordered, done.order, done.reason) == ("gw-2", True, "h1", "ordered")
    assert done.unix_s >= at_unix_s
    assert sorted(run.notes("order")) == [
        "an order for 'ue-2' came to ue-1",
        "there is no base station 'gw-9': the order was not carried out",
    ]
    assert run.notes("end") == ["stopped"]


class Failing(IdleRadio):
    """The first handover fails as told."""

    def __init__(self, error: Exception) -> None:
        super().__init__(INTERRUPTION_MS)
        self.errors = [error]

    def hand_over(self, user: str, target: str) -> HandedOver:
        if self.errors:
            raise self.errors.pop()
        return super().hand_over(user, target)


@pytest.mark.parametrize("error", [StepFailed("the air is full"), RuntimeError("a plug-in's own fault")])
def test_a_handover_that_fails_is_told_and_tried_again(error: Exception) -> None:
    run = Run(Failing(error)).to_its_end()
    first, *later = run.of(HandoverRecord)
    assert str(error) in first.error
    assert (first.source, first.target) == ("gw-1", "gw-2")
    assert [each.error for each in later] == [""] * len(later)
    assert later[0].source == "gw-1", "it was still there"
    assert later[-1].target == "gw-3"


class Watched(IdleRadio):
    def __init__(self) -> None:
        super().__init__(INTERRUPTION_MS)
        self.done: list[str] = []

    def attach(self, user: str, target: str) -> None:
        self.done.append(f"attach {target}")
        super().attach(user, target)

    def detach(self, user: str) -> None:
        self.done.append("detach")
        super().detach(user)


def test_who_leaves_all_coverage_is_nowhere_until_something_is_heard_again() -> None:
    loss = PathLoss(shadowing_db=0.5, noise_db=0.2, transmit_power_dbm=-5.0)
    far = tuple(msgspec.structs.replace(each, x_m=(each.x_m or 0) * 4) for each in SHIPPED.base_stations[:2])
    layout = msgspec.structs.replace(SHIPPED, base_stations=far, path_loss=loss)
    radio = Watched()
    run = Run(radio, layout, length_m=200.0).to_its_end()
    assert radio.done == ["attach gw-1", "detach", "attach gw-2"]
    assert run.notes("out-of-coverage") == ["gw-1 is not heard any more, nor is any other"]
    nowhere = [report for report in run.of(UserReport) if report.state is LinkState.NO_COVERAGE]
    assert nowhere
    assert all(report.serving == "" for report in nowhere)
    assert not run.of(HandoverRecord)


def test_a_run_ends_after_its_duration() -> None:
    run = Run(duration_s=10.0).to_its_end()
    assert 10.0 <= run.of(UserReport)[-1].elapsed_s < 15.0
