"""A probe and a migration of the same service: both want to track its memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.migrate.conftest import EDGES, Running
from tests.migrate.disturb import goes_on, until
from whimbrel.model.errors import Conflict
from whimbrel.model.migration import Outcome


def test_a_migration_waits_for_the_end_of_a_probe(running: Running) -> None:
    count, _ = running.user.ask("count")
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(running.lab.controller.probe, running.name, 2.0)

        def is_probed() -> bool:
            nonlocal probe
            if probe.done():  # the look below was faster, and it was refused
                probe = pool.submit(running.lab.controller.probe, running.name, 2.0)
            try:
                running.lab.controller.probe(running.name, 0.01)
            except Conflict as error:
                return "is being probed" in str(error)
            return False

        until(is_probed, "the probe does not begin")
        record = running.migrate(EDGES[1])
        found = probe.result()
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    assert found.checkpoint_bytes >= running.memory_mb << 20
    assert found.delta_bytes < found.checkpoint_bytes
    goes_on(running, count)
