"""The demo's own logic; that it runs as a whole is tested with the lab."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from whimbrel.lab import session
from whimbrel.lab.commands import LabStatus
from whimbrel.lab.demo import demo
from whimbrel.model.errors import BadInput

UP = LabStatus(up=True, present=True, directory="")
DOWN = LabStatus(up=False, present=False, directory="")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def up(topology: Path | None, progress: Callable[[str], None], *, lab_dir: Path) -> LabStatus:
        seen.append("up")
        return UP

    monkeypatch.setattr(session, "lab_up", up)
    monkeypatch.setattr(session, "lab_down", lambda **_: seen.append("down"))
    monkeypatch.setattr(session, "lab_status", lambda **_: DOWN)
    return seen


def test_an_unknown_scenario_is_refused_before_anything_starts() -> None:
    with pytest.raises(BadInput, match="round-trip"):
        demo(scenario="moon")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_lab_goes_down_when_asked_to_end(calls: list[str], number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def body() -> None:
        with session.lab_session(lambda _: None):
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        body()
    assert calls == ["up", "down"]
    assert signal.getsignal(number) == before


def test_the_lab_goes_down_after_a_failure_and_after_success(calls: list[str]) -> None:
    with contextlib.suppress(ZeroDivisionError), session.lab_session(lambda _: None):
        raise ZeroDivisionError
    with session.lab_session(lambda _: None):
        pass
    assert calls == ["up", "down"] * 2


def test_a_second_signal_does_not_cut_the_cleanup_short(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*, lab_dir: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        calls.append("down")

    monkeypatch.setattr(session, "lab_down", down)
    with session.lab_session(lambda _: None):
        pass
    assert calls == ["up", "down"]


def test_a_lab_that_is_up_can_be_used_and_stays(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "lab_status", lambda **_: UP)
    with session.lab_session(lambda _: None, reuse=True) as status:
        assert status is UP
    assert calls == []
