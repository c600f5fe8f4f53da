"""A system container of LXC moves with its init and all its processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marks import thorough
from tests.migrate import lxc_nodes
from tests.migrate.conftest import EDGES, PORT, Lab, Running, user_when_ready
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    cancel_it,
    criu_pids,
    destination_is_clean,
    disturb,
    goes_on,
    kill_agent,
    kill_all,
    source_is_whole,
    until,
)
from tests.migrate.lxc_nodes import LxcNode
from whimbrel.model.errors import BadInput, Refused
from whimbrel.model.migration import Outcome
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines.base import cgroup_of
from whimbrel.runtime.limits import read_limits

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(lxc_nodes.missing()), reason=lxc_nodes.missing()),
]


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> Iterator[dict[str, LxcNode]]:
    made = {node: LxcNode(lab, node) for node in EDGES}
    try:
        yield made
    finally:
        for node in made.values():
            node.stop()


@pytest.fixture(scope="module")
def adopted(lab: Lab, nodes: dict[str, LxcNode]) -> Iterator[str]:
    """A container that is a service on the first node, where each test leaves it: its root takes seconds to copy."""
    nodes[EDGES[0]].run("sys", memory_mb=24)
    status = lab.controller.adopt_service("sys", "lxc", "sys", EDGES[0], ports=[f"{PORT}/tcp", f"{PORT}/udp"])
    yield status.spec.address.split("/")[0]
    lab.controller.remove_service("sys")


@pytest.fixture
def system(lab: Lab, adopted: str) -> Iterator[Running]:
    user = user_when_ready(lab, adopted)
    try:
        yield Running(lab, "sys", 24, user)
    finally:
        user.close()
        lab.disarm()


def test_a_system_container_moves(system: Running, nodes: dict[str, LxcNode]) -> None:
    count, _ = system.user.ask("count")
    processes = nodes[EDGES[0]].processes("sys")
    limits = limits_of(system)
    assert limits["pids.max"] == "321"
    assert limits["devices.list"] != "a *:* rwm"
    in_container(nodes[EDGES[0]], "echo kept > /root/file; rm /etc/issue; mkfifo /run/fifo; ln /root/file /root/again")
    in_container(nodes[EDGES[0]], "logger -t test before the move; echo mine > /dev/shm/mine")
    there_and_back = ((EDGES[0], EDGES[1], "hybrid"), (EDGES[1], EDGES[0], "tmpfs"))  # streamed, and by way of layers
    for source, target, strategy in there_and_back:
        record = system.migrate(target, strategy)
        assert not record.error, record.error
        assert record.outcome is Outcome.DONE
        assert "after the commit" not in record.reason
        count = goes_on(system, count)
        node = nodes[target]
        assert (node.names(), node.state("sys")) == (["sys"], "RUNNING")
        assert node.processes("sys") == processes, "init, syslogd, klogd, cron and the service"
        seen = "cat /root/again /dev/shm/mine; test -p /run/fifo && test ! -e /etc/issue && hostname"
        assert in_container(node, seen).split() == ["kept", "mine", "sys"]
        in_container(node, f"logger -t test at {target}")
        until(lambda: f"at {target}" in in_container(node, "cat /var/log/messages"), "syslogd does not log any more")  # noqa: B023
        executed = system.lab.controller.exec("sys", ["cat", "/proc/1/comm"])
        assert (executed.exit_code, executed.stdout) == (0, "init\n")
        assert limits_of(system) == limits
        assert nodes[source].names() == []
        assert system.lab.leftovers(source, "sys") == []
    assert "before the move" in in_container(nodes[EDGES[0]], "cat /var/log/messages")
    service = int(in_container(nodes[EDGES[0]], "busybox pidof python3"))
    in_container(nodes[EDGES[0]], f"kill {service}")
    until(lambda: in_container(nodes[EDGES[0]], "busybox pidof python3 || true") not in ("", str(service)),
          "init does not respawn what has died")  # fmt: skip


def limits_of(system: Running) -> dict[str, str]:
    pid = system.lab.controller.service("sys").pid
    return read_limits(Cgroup(cgroup_of(pid)))


def in_container(node: LxcNode, script: str) -> str:
    return node("attach", "-n", "sys", "--", "sh", "-c", script)


STRIKES: dict[str, tuple[str, Callable[[Running], object]]] = {
    "cancelled when restored": ("receive.ready", cancel_it),
    "CRIU killed": ("receive.pre-resume", lambda system: kill_all(criu_pids(system.lab, DESTINATION))),
    "agent there killed": ("rounds", lambda system: kill_agent(system.lab, DESTINATION)),
}


@pytest.mark.parametrize("what", ["CRIU killed", *thorough("cancelled when restored", "agent there killed")])
def test_before_the_commit_all_is_undone(system: Running, nodes: dict[str, LxcNode], what: str) -> None:
    count, _ = system.user.ask("count")
    groups_before = groups_of_containers()
    point, strike = STRIKES[what]
    record = disturb(system, point, lambda: strike(system))
    assert record.outcome in (Outcome.CANCELLED, Outcome.ROLLED_BACK)
    source_is_whole(system, count)
    destination_is_clean(system)
    until(lambda: nodes[DESTINATION].names() == [], "LXC at the destination keeps something")
    assert nodes[SOURCE].state("sys") == "RUNNING"
    until(lambda: groups_of_containers() <= groups_before, "control groups of the attempt are left")


def groups_of_containers() -> set[str]:
    """LXC gives the group a number where one of that name exists: all containers of a host share the names."""
    return {str(path) for path in Path("/sys/fs/cgroup").glob("*/lxc.payload.*")}


REFUSED = {
    "a console": ("lxc.console.path = none", "", "has a console"),
    "terminals": ("lxc.tty.max = 0", "lxc.tty.max = 1\nlxc.tty.dir =", "has terminals"),
    "a folder of the host": ("", "lxc.mount.entry = /srv srv none bind 0 0", "/srv of the host is mounted in it"),
}


@pytest.fixture(scope="module")
def odd(nodes: dict[str, LxcNode]) -> Iterator[LxcNode]:
    """A node with a container ``odd``, not started; copying the root for each of its settings would take seconds."""
    node = nodes[SOURCE]
    node.make("odd")
    yield node
    node("destroy", "-n", "odd", "-f")


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_move_is_refused(lab: Lab, odd: LxcNode, what: str) -> None:
    old, new, reason = REFUSED[what]
    odd.configure("odd", old, new)
    try:
        odd("start", "-n", "odd", "-d")
        with pytest.raises(Refused, match=reason):
            lab.controller.adopt_service("odd", "lxc", "odd", SOURCE)
        assert odd.state("odd") == "RUNNING", "it is left as it was"
    finally:
        odd("stop", "-n", "odd", "-k", may_fail=True)


def test_bad_input_is_named(lab: Lab, nodes: dict[str, LxcNode]) -> None:
    with pytest.raises(BadInput, match="LXC has no container 'nobody'"):
        lab.controller.adopt_service("x", "lxc", "nobody", SOURCE)
    with pytest.raises(BadInput, match=r"LXC has no container '\.\./sys'"):
        lab.controller.adopt_service("x", "lxc", "../sys", SOURCE)
    nodes[SOURCE].make_empty("still")
    try:
        with pytest.raises(Refused, match="container still is stopped: only a running one can move"):
            lab.controller.adopt_service("x", "lxc", "still", SOURCE)
    finally:
        nodes[SOURCE]("destroy", "-n", "still", "-f")
