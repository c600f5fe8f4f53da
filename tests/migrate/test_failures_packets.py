"""A migration that is rolled back loses no datagram either: what was held is delivered to the source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.migrate.conftest import Running, User
from tests.migrate.disturb import (
    DESTINATION,
    cancel_it,
    criu_pids,
    disturb,
    goes_on,
    held_at,
    kill_all,
    source_is_whole,
    until,
)
from tests.migrate.test_strategies import all_datagrams
from whimbrel.model.migration import Outcome


class Datagrams:
    """Numbered, 500 a second."""

    def __init__(self, user: User) -> None:
        self.sent = 0
        self._user = user
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._stop.wait(0.002):
            self._user.udp.send(b"%d" % self.sent)
            self.sent += 1

    @contextmanager
    def flowing(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def unanswered(self) -> set[int]:
        self._user.udp.settimeout(2)
        return set(range(self.sent)) - {int(answer) for answer in all_datagrams(self._user.udp)}


@pytest.mark.parametrize(("point", "how"), [("freeze.pages", "cancel"), ("freeze.restore", "criu")])
def test_no_datagram_is_lost_on_a_rollback(running: Running, point: str, how: str) -> None:
    count, _ = running.user.ask("count")
    datagrams = Datagrams(running.user)
    strikes: dict[str, Callable[[], object]] = {
        "cancel": lambda: cancel_it(running),
        "criu": lambda: kill_all(criu_pids(running.lab, DESTINATION)),
    }
    with datagrams.flowing():
        record = disturb(running, point, strikes[how])
    assert record.outcome in (Outcome.ROLLED_BACK, Outcome.CANCELLED)
    assert datagrams.sent > 50
    lost = datagrams.unanswered()
    assert not lost, f"{len(lost)} of {datagrams.sent}, {min(lost)} to {max(lost)}"
    source_is_whole(running, count)


@pytest.mark.parametrize("how", ["rolled back", "done"])
def test_what_was_held_for_seconds_is_delivered(running: Running, how: str) -> None:
    """More than a processor's backlog takes at once: 1,000 frames."""
    count, _ = running.user.ask("count")
    datagrams = Datagrams(running.user)
    with datagrams.flowing():
        with held_at(running, "freeze.restore") as attempt:
            before = datagrams.sent
            until(lambda: datagrams.sent > before + 1500, "nothing is sent")
            if how == "rolled back":
                kill_all(criu_pids(running.lab, DESTINATION))
        record = attempt.wait()
    assert record.outcome is (Outcome.ROLLED_BACK if how == "rolled back" else Outcome.DONE)
    lost = datagrams.unanswered()
    assert not lost, f"{len(lost)} of {datagrams.sent}, {min(lost)} to {max(lost)}"
    goes_on(running, count)
