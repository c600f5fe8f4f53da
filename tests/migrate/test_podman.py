"""Containers of Podman move, and are Podman's own at the destination."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.migrate import docker_nodes, podman_nodes
from tests.migrate.conftest import EDGES, PORT, Lab, Running, user_when_ready
from tests.migrate.disturb import DESTINATION, SOURCE, cancel_it, disturb, goes_on, source_is_whole, until
from tests.migrate.podman_nodes import LIMITS, PodmanNode
from whimbrel.model.errors import Refused
from whimbrel.model.migration import Outcome

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(podman_nodes.missing()), reason=podman_nodes.missing()),
]
Podmans = dict[str, PodmanNode]


@pytest.fixture(scope="module")
def podmans(lab: Lab) -> Iterator[Podmans]:
    nodes = {node: PodmanNode(lab, node) for node in EDGES[:2]}
    try:
        for node in nodes.values():
            node.load(docker_nodes.archive())
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()


def run(podman: PodmanNode, name: str, *options: str) -> None:
    podman("run", "--detach", "--name", name, "--network", "none", *LIMITS, "--env", "MEMORY_MB=24", *options, "demo")


@pytest.fixture
def pod(lab: Lab, podmans: Podmans) -> Iterator[Running]:
    run(podmans[SOURCE], "pod", "--label", "colour=green", "--volume", "kept:/keep")
    status = lab.controller.adopt_service("pod", "podman", "pod", SOURCE, ports=[f"{PORT}/tcp", f"{PORT}/udp"])
    user = user_when_ready(lab, status.spec.address.split("/")[0])
    try:
        yield Running(lab, "pod", 24, user)
    finally:
        user.close()
        lab.disarm()
        lab.controller.remove_service("pod")
        for podman in podmans.values():
            assert podman.names() == []
        podmans[SOURCE]("volume", "prune", "--force")


def test_the_container_moves_and_is_podmans_own(pod: Running, podmans: Podmans) -> None:
    count, _ = pod.user.ask("count")
    podmans[SOURCE]("exec", "pod", "/usr/bin/python3", "-c", "open('/keep/v', 'w').write('volume')")
    podmans[DESTINATION]("rmi", "demo")
    for source, target in ((SOURCE, DESTINATION), (DESTINATION, SOURCE)):
        record = pod.migrate(target)
        assert not record.error, record.error
        assert bool(record.image_bytes) == (target == DESTINATION), "brought ahead where it was missing"
        assert record.outcome is Outcome.DONE
        assert "after the commit" not in record.reason
        count = goes_on(pod, count)
        podman = podmans[target]
        facts = json.loads(podman("inspect", "pod"))[0]
        status = pod.lab.controller.service("pod")
        assert (facts["State"]["Status"], facts["State"]["Pid"]) == ("running", status.pid)
        assert facts["Config"]["Labels"]["colour"] == "green"
        assert podman("exec", "pod", "/usr/bin/python3", "-c", "print(open('/keep/v').read())") == "volume"
        assert podmans[source].names() == []
        assert podmans[source]("volume", "ls", "--quiet") == ""
        assert "serving on port" in pod.lab.controller.logs("pod")


@pytest.mark.thorough
def test_before_the_commit_all_is_undone(pod: Running, podmans: Podmans) -> None:
    count, _ = pod.user.ask("count")
    pid = pod.lab.controller.service("pod").pid
    assert disturb(pod, "receive.ready", lambda: cancel_it(pod)).outcome is Outcome.CANCELLED
    source_is_whole(pod, count)
    until(lambda: podmans[DESTINATION].names() == [], "podman at the destination keeps something")
    assert podmans[DESTINATION]("volume", "ls", "--quiet") == ""
    assert int(podmans[SOURCE]("inspect", "--format", "{{.State.Pid}}", "pod")) == pid


def test_a_restart_policy_is_refused(lab: Lab, podmans: Podmans) -> None:
    run(podmans[SOURCE], "again", "--restart", "always")
    try:
        with pytest.raises(Refused, match="container again has the restart policy 'always'"):
            lab.controller.adopt_service("again", "podman", "again", SOURCE)
    finally:
        podmans[SOURCE]("rm", "--force", "--time", "0", "again")
