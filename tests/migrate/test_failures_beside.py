"""Failures while a large dirty set crosses beside the restore: the destination has most of the service already, the
source is still the only one who may run it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from marks import thorough
from tests.migrate.conftest import Lab, Target
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    Attempt,
    cancel_it,
    criu_pids,
    destination_is_clean,
    held_at,
    journal_step,
    kill_all,
    link_of,
    receiver_pids,
    until,
)
from tests.migrate.test_hard_memory import BUSY, BUSY_BANDWIDTH_BPS, ask, serving
from whimbrel.memory.ranges import as_ranges
from whimbrel.memory.supply import MISSING, Supply
from whimbrel.migrate.receive import Receiver
from whimbrel.model.errors import StepFailed
from whimbrel.model.migration import Outcome
from whimbrel.model.units import PAGE_BYTES

BESIDE, RESTORING = "freeze.beside", "receive.post-restore"


@pytest.fixture(scope="module")
def busy(lab: Lab) -> Iterator[tuple[Target, socket.socket]]:
    with serving(lab, "busy", BUSY) as user:
        yield Target(lab, "busy"), user


def runs_on_at_the_source(lab: Lab, user: socket.socket) -> None:
    assert lab.controller.service("busy").node == SOURCE
    good, turns = ask(user)
    assert good, "a byte is not what the program wrote"
    until(lambda: ask(user)[1] > turns, "the threads do not run on")


STRIKES: dict[str, tuple[str, Callable[[Lab], None]]] = {
    "receiver": (BESIDE, lambda lab: kill_all(receiver_pids(lab, DESTINATION))),
    "CRIU at the destination": (RESTORING, lambda lab: kill_all(criu_pids(lab, DESTINATION))),
}


@pytest.mark.parametrize("victim", ["receiver", *thorough("CRIU at the destination")])
def test_somebody_killed(busy: tuple[Target, socket.socket], victim: str) -> None:
    target, user = busy
    point, strike = STRIKES[victim]
    with held_at(target, point, bandwidth_bps=BUSY_BANDWIDTH_BPS) as attempt:
        strike(target.lab)
    assert rolled_back(attempt)
    runs_on_at_the_source(target.lab, user)
    destination_is_clean(target)


def test_link_cut(busy: tuple[Target, socket.socket]) -> None:
    target, user = busy
    lab = target.lab
    with link_of(lab) as link:
        with held_at(target, BESIDE, bandwidth_bps=BUSY_BANDWIDTH_BPS) as attempt:
            link.cut()
            lab.disarm()
            until(lambda: not journal_step(lab, SOURCE), "the source does not give up", 30)
            runs_on_at_the_source(lab, user)  # while the link is still dead
            link.mend()
        assert rolled_back(attempt)
    destination_is_clean(target)


@pytest.mark.parametrize("point", [BESIDE, *thorough(RESTORING)])
def test_cancelled(busy: tuple[Target, socket.socket], point: str) -> None:
    target, user = busy
    with held_at(target, point, bandwidth_bps=BUSY_BANDWIDTH_BPS) as attempt:
        cancel_it(target)
    assert attempt.wait().outcome is Outcome.CANCELLED
    runs_on_at_the_source(target.lab, user)
    destination_is_clean(target)


def rolled_back(attempt: Attempt) -> bool:
    record = attempt.wait()
    return record.outcome is Outcome.ROLLED_BACK and "freeze.beside" in [phase.name for phase in record.phases]


def test_what_never_arrived_forbids_the_commit() -> None:
    have = np.array([5, 6, 7, 8], dtype=np.uint64)
    receiver = Receiver.__new__(Receiver)
    receiver.supplies = {1: Supply(have, np.array([1, 2, 3, MISSING]))}
    receiver._check_beside({1: as_ranges([(5 * PAGE_BYTES, 8 * PAGE_BYTES)])})
    with pytest.raises(StepFailed, match="1 pages of process 1 never arrived"):
        receiver._check_beside({1: as_ranges([(5 * PAGE_BYTES, 9 * PAGE_BYTES)])})
