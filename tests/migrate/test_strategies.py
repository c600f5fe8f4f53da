"""Every strategy moves a running service with its state, its connections and its place in the runtime."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from marks import MANY
from tests.migrate.conftest import EDGES, Running
from whimbrel.agent.place import needed_file_of
from whimbrel.memory.needed import load, unpack
from whimbrel.model.migration import Outcome
from whimbrel.plan.strategies import known
from whimbrel.workloads.memory.service import expected_digest


def state_is_right(running: Running, contents: str = "words", zero_share: float = 0.0) -> bool:
    writes, digest = running.user.ask("digest")
    return digest == expected_digest(writes, running.memory_mb, contents, zero_share)


@pytest.mark.parametrize("strategy", sorted(known()))
def test_the_service_moves_with_state_and_connections(running: Running, strategy: str) -> None:
    user = running.user
    count, writes = user.ask("count")
    way = (EDGES[1], EDGES[2], EDGES[0]) if MANY else (EDGES[1], EDGES[0])
    for target in way:
        record = running.migrate(target, strategy)
        assert not record.error, record.error
        assert record.outcome is Outcome.DONE
        assert running.node == target
        next_count, next_writes = user.ask("count")
        assert next_count == count + 1, "the counter lives in the service: it must go on by one"
        assert next_writes > writes, "the writer thread must run on"
        count, writes = next_count, next_writes
        assert user.echo(b"still there") == b"still there"
        assert state_is_right(running)
        for node in set(EDGES) - {target}:
            assert running.lab.leftovers(node, running.name) == []
    status = running.lab.controller.service(running.name)
    assert status.migrations == len(way)
    if known()[strategy].rounds.limit > 1:
        assert len(record.rounds) >= 3, "at least the first round, another, and the final one"
        assert record.rounds[0].dirty_pages > running.memory_mb * 200


def test_what_it_waited_for_when_it_arrived_goes_along(running: Running) -> None:
    """Also through a journey on which it waits for nothing."""

    def needed(node: str) -> dict[int, int]:
        file = needed_file_of(running.lab.state_dir(node), running.name)
        return {ns_pid: int(stretches[:, 1].sum()) for ns_pid, stretches in unpack(load(file, range(1, 1000))).items()}

    assert needed(EDGES[0]) == {}
    assert running.migrate(EDGES[1], "hybrid").faults > 0
    first = needed(EDGES[1]).values()
    assert sum(first) > 0
    assert running.migrate(EDGES[0], "stop-and-copy").outcome is Outcome.DONE
    assert sorted(needed(EDGES[0]).values()) == sorted(first)
    assert needed(EDGES[1]) == {}, "nothing stays behind"
    assert running.migrate(EDGES[1], "hybrid").outcome is Outcome.DONE
    assert sum(needed(EDGES[1]).values()) >= sum(first)
    assert state_is_right(running)


def test_a_moved_container_is_a_full_citizen_of_its_runtime(running: Running) -> None:
    for target in (EDGES[1], EDGES[0], EDGES[1]) if MANY else (EDGES[1],):
        assert running.migrate(target).outcome is Outcome.DONE
    root = running.lab.state_dir(EDGES[1]) / "run/runc"

    def runc(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["runc", "--root", root, *args], capture_output=True, text=True, check=True)

    listed = {item["id"]: item for item in json.loads(runc("list", "--format", "json").stdout)}
    assert listed[running.name]["status"] == "running"
    state = json.loads(runc("state", running.name).stdout)
    assert state["pid"] == running.lab.controller.service(running.name).pid
    inside = runc("exec", running.name, "/usr/bin/python3", "-c", "import os; print(os.listdir('/srv'))")
    assert "service.py" in inside.stdout
    executed = running.lab.controller.exec(running.name, ["/usr/bin/python3", "-c", "print(6 * 7)"])
    assert (executed.exit_code, executed.stdout) == (0, "42\n")
    log = running.lab.controller.logs(running.name)
    assert "serving on port" in log, "what it wrote on its first node follows it"
    runc("kill", running.name, "KILL")
    runc("delete", "--force", running.name)


def test_output_after_the_move_is_in_the_log(running: Running) -> None:
    running.migrate(EDGES[1])
    write = "open('/proc/1/fd/1', 'w').write('written after the move\\n')"
    running.lab.controller.exec(running.name, ["/usr/bin/python3", "-c", write])
    assert "written after the move" in running.lab.controller.logs(running.name)


def test_files_follow(running: Running) -> None:
    def sh(code: str) -> str:
        result = running.lab.controller.exec(running.name, ["/usr/bin/python3", "-c", code])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    sh("import os; os.makedirs('/data/deep'); open('/data/deep/a', 'w').write('before')")
    sh("import os; open('/dev/shm/s', 'w').write('shared'); os.remove('/srv/service.py')")
    assert running.migrate(EDGES[1]).outcome is Outcome.DONE
    assert sh("print(open('/data/deep/a').read(), open('/dev/shm/s').read())") == "before shared\n"
    assert sh("import os; print(os.path.exists('/srv/service.py'))") == "False\n"


def all_datagrams(sock: socket.socket) -> Iterator[bytes]:
    """Until nothing comes any more for the socket's timeout."""
    while True:
        try:
            yield sock.recv(64)
        except TimeoutError:
            return


def test_held_packets_are_delivered_not_lost(running: Running) -> None:
    """Datagrams sent throughout a migration are all answered."""
    stop = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        while not stop.is_set():
            running.user.udp.send(b"%d" % sent)
            sent += 1
            stop.wait(0.002)

    running.user.udp.settimeout(2)
    sender = threading.Thread(target=send)
    sender.start()
    record = running.migrate(EDGES[1])
    stop.set()
    sender.join()
    assert record.outcome is Outcome.DONE
    answered = set(all_datagrams(running.user.udp))
    assert len(answered) == sent
