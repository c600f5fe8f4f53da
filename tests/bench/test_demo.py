"""The demo's own logic; that it runs as a whole is tested with the lab."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from whimbrel.bench.companion import companion
from whimbrel.lab import session
from whimbrel.lab.commands import LabStatus
from whimbrel.lab.demo import demo, how_long, what_was_wrong
from whimbrel.model.errors import BadInput
from whimbrel.model.migration import MigrationRecord, Outcome

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_program_starts_leaves_no_program(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        """The signal comes when there is a child, and nobody has got to know of it."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            os.kill(os.getpid(), number)

    def body() -> None:
        with session.interruptible(), companion(["sleep", "60"]):
            pytest.fail("it goes on")

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        body()
    assert [process.returncode for process in started] == [-signal.SIGTERM]


def test_a_lab_that_is_up_can_be_used_and_stays(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "lab_status", lambda **_: UP)
    with session.lab_session(lambda _: None, reuse=True) as status:
        assert status is UP
    assert calls == []


@pytest.mark.parametrize(
    ("took_s", "built", "line"),
    [
        (43.4, False, "the demo took 43 s"),
        (60.0, True, "the demo took 60 s"),
        (
            75.0, False,
            "the demo took 75 s, more than the usual 60 s: is this machine slow, or busy?",
        ),
        (
            200.0, True,
            "the demo took 200 s, more than the usual 60 s: the image was built first",
        ),
    ],
)  # fmt: skip
def test_it_says_how_long_it_took_and_whether_that_is_usual(took_s: float, built: bool, line: str) -> None:
    assert how_long(took_s, built=built) == line


@pytest.mark.parametrize(
    ("changes", "load", "line"),
    [
        ({}, 9.0, ""),
        ({"lost": 3}, 0.5, "not as it should be: edge-1 -> edge-2: 3 requests lost"),
        (
            {"lost": 3, "resets": 1},
            4.0,
            "not as it should be: edge-1 -> edge-2: 3 requests lost, 1 connections reset; this machine is busy (load "
            "4.0 on 2 processors), try again when it is not",
        ),
        ({"state_ok": False}, 0.5, "not as it should be: edge-1 -> edge-2: DAMAGED"),
        (
            {"outcome": Outcome.ROLLED_BACK, "error": "no room"},
            0.5,
            "not as it should be: edge-1 -> edge-2: rolled-back: no room",
        ),
    ],
)
def test_a_demo_that_ends_with_1_says_why(changes: dict[str, object], load: float, line: str) -> None:
    good = MigrationRecord(
        id="m", service="demo", source="edge-1", destination="edge-2", strategy="hybrid", outcome=Outcome.DONE
    )
    assert what_was_wrong([good, msgspec.structs.replace(good, **changes)], load, 2) == line
