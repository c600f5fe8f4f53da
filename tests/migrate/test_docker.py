"""Containers of Docker move, and are Docker's own at the destination."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.migrate import docker_nodes
from tests.migrate.conftest import EDGES, PORT, Lab, Running, user_when_ready
from tests.migrate.disturb import (
    SOURCE,
    goes_on,
    until,
)
from tests.migrate.docker_nodes import IMAGE, DockerNode
from whimbrel.model.migration import Outcome
from whimbrel.model.service import ServiceState

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(docker_nodes.missing()), reason=docker_nodes.missing()),
]
Dockers = dict[str, DockerNode]
DRIVERS = dict(zip(EDGES, ("overlay2", "overlay2", "vfs"), strict=True))


@pytest.fixture(scope="module")
def dockers(lab: Lab) -> Iterator[Dockers]:
    nodes = {node: DockerNode(lab, node, driver) for node, driver in DRIVERS.items()}
    try:
        image = docker_nodes.archive()
        for node in nodes.values():
            node.load(image)
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()


Start = Callable[..., Running]


@pytest.fixture
def start(lab: Lab, dockers: Dockers) -> Iterator[Start]:
    """Starts the demo as container ``web`` on the first node, with docker's options, and makes it a service."""
    started: list[Running] = []

    def run(*options: str, network: str = "none") -> Running:
        dockers[SOURCE](
            "run", "--detach", "--name", "web", "--network", network, "--env", "MEMORY_MB=24", *options, IMAGE
        )  # fmt: skip
        status = lab.controller.adopt_service("web", "docker", "web", SOURCE, ports=[f"{PORT}/tcp", f"{PORT}/udp"])
        user = user_when_ready(lab, status.spec.address.split("/")[0])
        started.append(Running(lab, "web", 24, user))
        return started[0]

    try:
        yield run
    finally:
        lab.disarm()
        for node in EDGES:
            if lab.agent_pid(node) == 0:
                lab.restart_agent(node)
        for running in started:
            running.user.close()
            lab.controller.remove_service("web")
        for node, docker in dockers.items():
            assert docker.names() == [], f"something is left at {node}"


def sh(running: Running, code: str) -> str:
    result = running.lab.controller.exec(running.name, ["/usr/bin/python3", "-c", code])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_container_moves_and_is_dockers_own(start: Start, dockers: Dockers) -> None:
    web = start("--label", "colour=red", "--restart", "on-failure:2", "--hostname", "shop")
    count, writes = web.user.ask("count")
    for target, strategy in ((EDGES[1], "hybrid"), (EDGES[2], "pre-copy"), (EDGES[0], "post-copy")):
        record = web.migrate(target, strategy)
        assert not record.error, record.error
        assert record.outcome is Outcome.DONE
        assert "after the commit" not in record.reason
        count += 1
        assert web.user.ask("count")[0] == count
        goes_on(web, count)
        count, writes = web.user.ask("count")
        docker, elsewhere = dockers[target], set(EDGES) - {target}
        assert docker.names(all_of_them=False) == ["web"]
        facts = json.loads(docker("inspect", "web"))[0]
        status = web.lab.controller.service("web")
        assert (facts["Id"], facts["State"]["Pid"]) == (status.container, status.pid)
        assert facts["Config"]["Labels"]["colour"] == "red"
        assert facts["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 2}
        assert "/srv/service.py" in docker("top", "web")
        assert (
            docker("exec", "web", "/usr/bin/python3", "-c", "print(6 * 7, open('/etc/hostname').read())") == "42 shop"
        )
        for node in elsewhere:
            assert dockers[node].names() == []
            assert web.lab.leftovers(node, "web") == []
    assert status.migrations == 3
    assert writes > 0
    docker("stop", "--time", "0", "web")
    until(lambda: web.lab.controller.service("web").state is ServiceState.STOPPED, "docker stop is not seen")


def test_output_follows_and_goes_on_in_dockers_own_log(start: Start, dockers: Dockers) -> None:
    web = start()
    assert web.migrate(EDGES[1]).outcome is Outcome.DONE
    sh(web, "open('/proc/1/fd/1', 'w').write('after the move\\n')")
    until(lambda: dockers[EDGES[1]]("logs", "web") == "after the move", "docker does not hear the container")
    assert "serving on port" in web.lab.controller.logs("web"), "what it wrote on its first node follows it"
    assert web.migrate(EDGES[2]).outcome is Outcome.DONE
    log = web.lab.controller.logs("web")
    assert log.index("serving on port") < log.index("after the move")


WRITE = """
import os, shutil, stat
os.makedirs('/data/deep'); open('/data/deep/a', 'w').write('before')
os.remove('/srv/service.py'); os.rmdir('/opt/below') if os.path.isdir('/opt/below') else None
shutil.rmtree('/usr/lib/python3.11/json'); os.mkdir('/usr/lib/python3.11/json')
open('/usr/lib/python3.11/json/only', 'w').write('mine')
open('/dev/shm/s', 'w').write('shared'); open('/scratch/t', 'w').write('tmpfs'); os.mkfifo('/scratch/fifo')
open('/keep/v', 'w').write('volume'); open('/anonymous/w', 'w').write('nameless')
os.link('/data/deep/a', '/data/b'); os.symlink('deep/a', '/data/link'); os.chmod('/data/deep/a', 0o4640)
"""
READ = """
import os, stat
print(open('/data/deep/a').read(), open('/dev/shm/s').read(), open('/scratch/t').read(), open('/keep/v').read(),
      open('/anonymous/w').read(), open('/data/link').read(), os.path.exists('/srv/service.py'),
      os.listdir('/usr/lib/python3.11/json'), oct(os.stat('/data/b').st_mode), os.stat('/data/b').st_nlink,
      stat.S_ISFIFO(os.stat('/scratch/fifo').st_mode))
"""
EXPECTED = "before shared tmpfs volume nameless before False ['only'] 0o104640 2 True\n"


def test_files_follow(start: Start, dockers: Dockers) -> None:
    """The writable layer (through overlay2, into and out of vfs), tmpfs mounts, volumes with a name and without."""
    web = start("--tmpfs", "/scratch", "--volume", "kept:/keep", "--volume", "/anonymous")
    sh(web, WRITE)
    assert sh(web, READ) == EXPECTED
    for target in (EDGES[1], EDGES[2], EDGES[0]):
        record = web.migrate(target)
        assert not record.error, record.error
        assert record.outcome is Outcome.DONE
        assert sh(web, READ) == EXPECTED
        for node, docker in dockers.items():
            volumes = docker("volume", "ls", "--quiet").split()
            assert len(volumes) == (2 if node == target else 0)
    dockers[EDGES[0]]("volume", "ls")
    web.lab.controller.remove_service("web")
    assert dockers[EDGES[0]]("volume", "ls", "--quiet").split() == ["kept"], "a named volume outlives its container"
    dockers[EDGES[0]]("volume", "rm", "kept")
