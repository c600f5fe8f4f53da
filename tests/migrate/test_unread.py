"""A service that does not read when it is frozen: what waits in its UDP sockets crosses with it, or stays with it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from tests.migrate.conftest import EDGES, Running
from tests.migrate.disturb import DESTINATION, criu_pids, disturb, kill_all, source_is_whole
from tests.migrate.test_strategies import all_datagrams, state_is_right
from whimbrel.model.migration import Outcome

MANY = 120  # as many as the usual buffer of a socket takes


@contextlib.contextmanager
def _reading_nothing(running: Running) -> Iterator[None]:
    """Stopped by a signal at the beginning, wherever it is let go on at the end."""
    os.kill(_pid(running), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(_pid(running), signal.SIGCONT)


def _pid(running: Running) -> int:
    return running.lab.controller.service(running.name).pid


def _send(running: Running) -> list[bytes]:
    numbers = [b"%d" % number for number in range(MANY)]
    for number in numbers:
        running.user.udp.send(number)
    return numbers


def test_what_it_had_not_read_crosses(running: Running) -> None:
    with _reading_nothing(running):
        sent = _send(running)
        record = running.migrate(EDGES[1])
        assert record.outcome is Outcome.DONE, record.error
    running.user.udp.settimeout(2)
    assert list(all_datagrams(running.user.udp)) == sent
    state_is_right(running)


def test_what_it_had_not_read_is_still_there_after_a_rollback(running: Running) -> None:
    count, _ = running.user.ask("count")
    with _reading_nothing(running):
        sent = _send(running)
        record = disturb(running, "freeze.restore", lambda: kill_all(criu_pids(running.lab, DESTINATION)))
        assert record.outcome is Outcome.ROLLED_BACK
    running.user.udp.settimeout(2)
    assert list(all_datagrams(running.user.udp)) == sent
    source_is_whole(running, count)
