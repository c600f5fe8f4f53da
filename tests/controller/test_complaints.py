"""One line for one trouble."""

from __future__ import annotations

from typing import Any

from whimbrel.controller.planning.complaints import QUIET_AFTER_S, Complaints


class Log:
    def __init__(self) -> None:
        self.now_s, self.told = 0.0, list[tuple[str, dict[str, Any]]]()
        self.complaints = Complaints(lambda text, facts: self.told.append((text, facts)), lambda: self.now_s)


def test_told_when_it_begins_and_anew_when_it_had_passed() -> None:
    log = Log()
    assert log.complaints.tell("a", "out of reach", user="x")
    assert not log.complaints.tell("a", "out of reach", user="x")
    assert log.complaints.tell("b", "out of reach")
    log.complaints.over("a")
    log.now_s += QUIET_AFTER_S
    assert log.complaints.tell("a", "out of reach")
    assert [facts for _, facts in log.told] == [{"user": "x"}, {}, {}]


def test_what_comes_and_goes_is_told_once() -> None:
    """A user at the rim of a cell, heard and not heard by turns for an hour; also where two reasons take turns."""
    log = Log()
    for second in range(3600):
        log.now_s = float(second)
        if second % 3 == 0:
            log.complaints.tell("u", "hears no base station")
        elif second % 3 == 1:
            log.complaints.tell("u", "every base station is full")
        else:
            log.complaints.over("u")
    assert len(log.told) == 2


def test_nothing_to_pass() -> None:
    log = Log()
    log.complaints.over("never")
    assert log.complaints.tell("never", "now")
