"""After GO only the destination knows. Whatever fails, one side runs, and only one; the record says what happened."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from marks import thorough
from tests.migrate.conftest import Running, User
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    destination_is_clean,
    goes_on,
    held_at,
    is_alive,
    is_frozen,
    journal_step,
    kill_agent,
    kill_all,
    link_of,
    receiver_pids,
    record_of_the_last,
    runs_only_at,
    source_is_whole,
    until,
)
from whimbrel.model.migration import Outcome
from whimbrel.runtime.cgroups import Cgroup


# --- the source's agent ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGKILL, *thorough(signal.SIGTERM)])
def test_source_agent_ends_after_go(running: Running, number: signal.Signals) -> None:
    """The next one asks the destination; the record tells what the first one had written down."""
    count, _ = running.user.ask("count")
    lab = running.lab
    agent = lab.agent_pid(SOURCE)
    with held_at(running, "receive.committed"):
        os.kill(agent, number)
        until(lambda: not is_alive(agent), "the agent does not end while it waits for the destination")
        assert is_frozen(SOURCE, running.name), "it must not run before the destination has said that it does not"
        lab.disarm()
        lab.restart_agent(SOURCE)
    record = record_of_the_last(running)
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    assert len(record.rounds) >= 2
    assert "restarted" in record.reason
    goes_on(running, count)
    runs_only_at(running, DESTINATION)
    assert lab.leftovers(SOURCE, running.name) == []


# --- the destination's agent ----------------------------------------------------------------------------------
def test_a_destination_that_gave_up_before_it_heard_go_is_believed(running: Running) -> None:
    """Its agent is dead, and what its receiving process said last is on the connection: nobody waits for the agent."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with held_at(running, "commit") as attempt:
        kill_agent(lab, DESTINATION)
        until(lambda: not receiver_pids(lab, DESTINATION), "the receiving process outlives its agent")
    assert attempt.wait().outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize("point", ["receive.committed", *thorough("receive.fill")])
def test_destination_agent_killed_after_the_commit(running: Running, point: str) -> None:
    """The pages are not the agent's: the service runs at the destination, and the restarted agent adopts it."""
    count, _ = running.user.ask("count")
    with held_at(running, point) as attempt:
        kill_agent(running.lab, DESTINATION)
        running.lab.disarm()
        running.lab.restart_agent(DESTINATION)
    assert attempt.wait().outcome is Outcome.DONE
    goes_on(running, count)
    runs_only_at(running, DESTINATION)
    assert running.lab.leftovers(SOURCE, running.name) == []


# --- the receiving process ------------------------------------------------------------------------------------
@pytest.mark.parametrize("point", ["receive.fill", *thorough("receive.committed")])
def test_receiving_process_killed_after_the_commit(running: Running, point: str) -> None:
    """It held pages that the service still lacked. The service must not read zeros in their place: it is ended at the
    destination and runs on at the source, which had been kept for that, and the record says what that means."""
    count, _ = running.user.ask("count")
    with held_at(running, point) as attempt:
        assert is_frozen(SOURCE, running.name)
        kill_all(receiver_pids(running.lab, DESTINATION))
    record = attempt.wait()
    assert record.outcome is Outcome.FAILED
    assert "as it was at the freeze" in record.error
    assert "\n" not in record.error
    source_is_whole(running, count)  # nothing was said to it in between, so nothing is lost
    destination_is_clean(running)
    runs_only_at(running, SOURCE)


def test_what_is_not_there_is_waited_for_not_read_as_zeros(running: Running) -> None:
    """The agent is slow to notice that the receiving process is dead, and meanwhile somebody reads all of the memory:
    there is no answer, rather than a wrong one."""
    count, _ = running.user.ask("count")
    lab = running.lab
    agent = lab.agent_pid(DESTINATION)
    reader = User(lab, running.user.address)
    with held_at(running, "receive.fill") as attempt:
        until(lambda: journal_step(lab, SOURCE) == "committed", "the source does not hear that it runs")
        os.kill(agent, signal.SIGSTOP)
        try:
            kill_all(receiver_pids(lab, DESTINATION))
            reader.tcp.settimeout(1)
            with pytest.raises(TimeoutError):
                reader.ask("digest")
        finally:
            os.kill(agent, signal.SIGCONT)
    reader.close()
    assert attempt.wait().outcome is Outcome.FAILED
    source_is_whole(running, count)


def test_receiving_process_and_source_agent_killed_after_the_commit(running: Running) -> None:
    """The restarted agent of the source must not take the destination's commit for the end of its service."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with held_at(running, "receive.fill"):
        until(lambda: journal_step(lab, SOURCE) == "committed", "the source does not hear that it runs")
        kill_agent(lab, SOURCE)
        kill_all(receiver_pids(lab, DESTINATION))
        lab.disarm()
        lab.restart_agent(SOURCE)
    record = record_of_the_last(running)
    assert record.outcome is Outcome.FAILED
    assert "as it was at the freeze" in record.error
    source_is_whole(running, count)
    destination_is_clean(running)


def test_destination_rebooted_after_the_commit(running: Running) -> None:
    """Whoever answers at its address with empty hands says that the service does not run there."""
    lab = running.lab
    with held_at(running, "receive.fill") as attempt:
        until(lambda: journal_step(lab, SOURCE) == "committed", "the source does not hear that it runs")
        kill_agent(lab, DESTINATION)
        Cgroup(f"/whimbrel/{DESTINATION}/{running.name}").kill_all()
        kill_all(receiver_pids(lab, DESTINATION))
        for words in (lab.state_dir(DESTINATION) / "run").glob("incoming-*"):
            shutil.rmtree(words)
        lab.disarm()
        lab.restart_agent(DESTINATION)
    record = attempt.wait()
    assert record.outcome is Outcome.FAILED
    assert "as it was at the freeze" in record.error
    runs_only_at(running, SOURCE)
    assert running.user.echo(b"here") == b"here"
    destination_is_clean(running)


def test_receiving_process_killed_when_all_pages_are_there(running: Running) -> None:
    """Pre-copy has nothing to fill: whatever the receiving process had still to do, the agent does."""
    count, _ = running.user.ask("count")
    with held_at(running, "receive.committed", strategy="pre-copy") as attempt:
        kill_all(receiver_pids(running.lab, DESTINATION))
    assert attempt.wait().outcome is Outcome.DONE
    goes_on(running, count)
    runs_only_at(running, DESTINATION)
    assert running.lab.leftovers(SOURCE, running.name) == []


# --- the link -------------------------------------------------------------------------------------------------
@pytest.mark.thorough
def test_link_cut_before_go_arrives(running: Running) -> None:
    """GO is lost. The source does not know that: it stays frozen until the link is back and the destination has said
    that it gave up."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with link_of(lab) as link:
        with held_at(running, "commit") as attempt:
            link.cut()
            lab.disarm()
            until(lambda: not receiver_pids(lab, DESTINATION), "the destination does not notice that the link is dead")
            assert is_frozen(SOURCE, running.name)
            link.mend()
        record = attempt.wait()
    assert record.outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


def test_link_cut_after_go(running: Running) -> None:
    """The destination runs and cannot say so: users are served there, and the source stays frozen until the link is
    back. Then it hears, and removes itself."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with link_of(lab) as link:
        with held_at(running, "receive.committed") as attempt:
            link.cut()
            lab.disarm()
            count = goes_on(running, count)
            until(lambda: attempt.told("waiting for the destination's word"), "the source does not ask")
            assert is_frozen(SOURCE, running.name)
            link.mend()
        record = attempt.wait()
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    goes_on(running, count)
    runs_only_at(running, DESTINATION)
    assert lab.leftovers(SOURCE, running.name) == []


def test_link_cut_while_pages_are_filled_in(running: Running) -> None:
    """RUNNING was heard, that all pages are there was not: the frozen source is kept until it is."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with link_of(lab) as link:
        with held_at(running, "receive.fill") as attempt:
            until(lambda: journal_step(lab, SOURCE) == "committed", "the source does not hear that it runs")
            link.cut()
            lab.disarm()
            count = goes_on(running, count)
            until(lambda: attempt.told("waiting for the destination's word"), "the source does not ask")
            assert is_frozen(SOURCE, running.name)
            link.mend()
        record = attempt.wait()
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    goes_on(running, count)
    runs_only_at(running, DESTINATION)
