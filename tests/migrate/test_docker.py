"""Containers of Docker move, and are Docker's own at the destination."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from marks import MANY, thorough
from tests.migrate import docker_nodes
from tests.migrate.conftest import EDGES, PORT, Lab, Running, user_when_ready
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    cancel_it,
    criu_pids,
    disturb,
    goes_on,
    held_at,
    is_alive,
    kill_agent,
    kill_all,
    receiver_pids,
    runs_only_at,
    source_is_whole,
    until,
)
from tests.migrate.docker_nodes import IMAGE, DockerNode
from whimbrel.model.errors import BadInput, Refused
from whimbrel.model.migration import Outcome
from whimbrel.model.service import ServiceState
from whimbrel.runtime.engines.wrapper import ARRIVALS

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(docker_nodes.missing()), reason=docker_nodes.missing()),
]
Dockers = dict[str, DockerNode]
DRIVERS = dict(zip(EDGES, ("overlay2", "overlay2", "vfs"), strict=True))
BRIDGES = {SOURCE: "172.31.77.1/24"}


@pytest.fixture(scope="module")
def dockers(lab: Lab) -> Iterator[Dockers]:
    nodes = {node: DockerNode(lab, node, driver, BRIDGES.get(node, "")) for node, driver in DRIVERS.items()}
    try:
        image = docker_nodes.archive()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.load(image), nodes.values()))
        yield nodes
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(DockerNode.stop, nodes.values()))


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
            if any(status.spec.name == "web" for status in lab.controller.services()):  # a test may have removed it
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


@pytest.mark.thorough
def test_output_follows_and_goes_on_in_dockers_own_log(start: Start, dockers: Dockers) -> None:
    web = start("--rm", "--cgroupns", "private")
    assert web.migrate(EDGES[1]).outcome is Outcome.DONE
    assert all(line.endswith(":/") for line in sh(web, "print(open('/proc/self/cgroup').read(), end='')").splitlines())
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
    for target in (*([EDGES[1]] if MANY else []), EDGES[2], EDGES[0]):
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


def test_a_container_with_dockers_own_network(start: Start, dockers: Dockers) -> None:
    """Its eth0 stays as it is and stays behind; the overlay is a second interface, which keeps its name."""
    web = start("--publish", "8000:7000", network="bridge")
    interfaces = "import socket; print(*sorted(name for _, name in socket.if_nameindex()))"
    assert sh(web, interfaces) == "eth0 lo whimbrel0\n"
    count, _ = web.user.ask("count")
    sh(web, "import socket, os; s = socket.create_server(('172.31.77.2', 0)) if os.fork() == 0 else None\n"
            "while s and not os.path.exists('/srv/enough'): __import__('time').sleep(0.02)")  # fmt: skip
    record = web.migrate(DESTINATION)
    assert "has a TCP socket on 172.31.77.2" in record.error
    sh(web, "open('/srv/enough', 'w')")
    until(lambda: web.migrate(DESTINATION).outcome is Outcome.DONE, "the listener does not end", 30)
    assert sh(web, interfaces) == "lo whimbrel0\n"
    goes_on(web, count)


def test_a_container_is_given_back(start: Start, dockers: Dockers) -> None:
    web = start()
    pid = web.lab.controller.service("web").pid
    web.lab.controller.release_service("web")
    assert web.lab.leftovers(SOURCE, "web") == []
    assert "web" not in [status.spec.name for status in web.lab.controller.services()]
    docker = dockers[SOURCE]
    assert int(docker.inspect("web", "{{.State.Pid}}")) == pid
    assert (
        docker("exec", "web", "/usr/bin/python3", "-c", "import socket; print(socket.if_nameindex())") == "[(1, 'lo')]"
    )
    web.lab.controller.adopt_service("web", "docker", "web", SOURCE)


# --- failures -------------------------------------------------------------------------------------------------
def as_before(web: Running, dockers: Dockers, count: int, pid: int) -> None:
    """The container goes on where it was, for docker too, and the destination's docker knows nothing of it."""
    source_is_whole(web, count)
    if web.lab.agent_pid(DESTINATION) == 0:
        web.lab.restart_agent(DESTINATION)
    until(lambda: not web.lab.leftovers(DESTINATION, "web"), "something is left at the destination")
    until(lambda: dockers[DESTINATION].names() == [], "docker at the destination keeps something")
    assert dockers[DESTINATION]("volume", "ls", "--quiet") == ""
    assert dockers[SOURCE].names(all_of_them=False) == ["web"]
    assert int(dockers[SOURCE].inspect("web", "{{.State.Pid}}")) == pid
    until(lambda: not list(Path(ARRIVALS).glob("*")), "somebody still waits for a container")


def _kill_shim(web: Running) -> None:
    """The process that docker watches the container with, whose child the restoring CRIU is."""
    pids = criu_pids(web.lab, DESTINATION)
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
    kill_all([pid for pid in parents if b"containerd-shim" in Path(f"/proc/{pid}/cmdline").read_bytes()])
    until(lambda: not any(is_alive(pid) for pid in pids), "nobody ends the CRIU that has lost its engine")


def _kill_agent_there(web: Running) -> None:
    kill_agent(web.lab, DESTINATION)
    until(lambda: not receiver_pids(web.lab, DESTINATION), "the receiving process outlives its agent")


STRIKES: dict[str, tuple[str, Callable[[Running], object]]] = {
    "cancelled when restored": ("receive.ready", cancel_it),
    "docker's shim killed": ("receive.ready", _kill_shim),
    "cancelled in the rounds": ("rounds", cancel_it),
    "CRIU killed": ("receive.pre-resume", lambda web: kill_all(criu_pids(web.lab, DESTINATION))),
    "receiving process killed": ("receive.start", lambda web: kill_all(receiver_pids(web.lab, DESTINATION))),
    "agent there killed": ("receive.ready", _kill_agent_there),
}


@pytest.mark.parametrize(
    "what", ["docker's shim killed", *thorough(*(each for each in STRIKES if each != "docker's shim killed"))]
)
def test_before_the_commit_all_is_undone(start: Start, dockers: Dockers, what: str) -> None:
    web = start("--volume", "/data")
    pid = web.lab.controller.service("web").pid
    count, _ = web.user.ask("count")
    point, strike = STRIKES[what]
    record = disturb(web, point, lambda: strike(web))
    assert record.outcome in (Outcome.CANCELLED, Outcome.ROLLED_BACK)
    as_before(web, dockers, count, pid)
    assert web.migrate(DESTINATION).outcome is Outcome.DONE


def test_agent_at_the_destination_killed_after_the_commit(start: Start, dockers: Dockers) -> None:
    web = start()
    count, _ = web.user.ask("count")
    with held_at(web, "receive.fill") as attempt:
        kill_agent(web.lab, DESTINATION)
        web.lab.disarm()
        web.lab.restart_agent(DESTINATION)
    assert attempt.wait().outcome is Outcome.DONE
    runs_only_at(web, DESTINATION)
    goes_on(web, count)
    assert dockers[DESTINATION].names(all_of_them=False) == ["web"]
    assert dockers[SOURCE].names() == []


@pytest.mark.thorough
def test_agent_at_the_source_killed_after_go(start: Start, dockers: Dockers) -> None:
    web = start("--restart", "always")
    count, _ = web.user.ask("count")
    with held_at(web, "after-go"):
        kill_agent(web.lab, SOURCE)
        web.lab.disarm()
        web.lab.restart_agent(SOURCE)
    runs_only_at(web, DESTINATION)
    goes_on(web, count)
    until(lambda: dockers[SOURCE].names() == [], "docker at the source keeps the container, or has started it again")


def test_lost_after_the_commit_it_goes_on_at_the_source(start: Start, dockers: Dockers) -> None:
    """Pages die with the receiving process: the container there is ended, and the frozen one runs on."""
    web = start()
    count, _ = web.user.ask("count")
    pid = web.lab.controller.service("web").pid
    record = disturb(web, "receive.fill", lambda: kill_all(receiver_pids(web.lab, DESTINATION)))
    assert record.outcome is Outcome.FAILED
    as_before(web, dockers, count, pid)


def test_a_container_that_docker_starts_again_is_plugged_in_again(start: Start, dockers: Dockers) -> None:
    web = start("--restart", "always")
    assert web.migrate(DESTINATION).outcome is Outcome.DONE
    before = web.lab.controller.service("web")
    dockers[DESTINATION]("restart", "--time", "0", "web")
    until(lambda: web.lab.controller.service("web").pid not in (0, before.pid), "the new process is not seen")
    user = user_when_ready(web.lab, before.spec.address.split("/")[0])
    assert user.ask("count")[0] == 1, "it began anew"
    user.close()


# --- refusals -------------------------------------------------------------------------------------------------
REFUSED = {
    "a terminal": (["--tty"], "has a terminal (-t)"),
    "a folder of the host": (["--volume", "/srv:/host"], "has /srv of the host at /host"),
    "the host's processes": (["--pid", "host"], "--pid=host"),
    "the host's network": (["--network", "host"], "--network=host"),
    "a device": (["--device", "/dev/zero:/dev/mine"], "has devices of the host"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_move_is_not_adopted(lab: Lab, dockers: Dockers, what: str) -> None:
    options, reason = REFUSED[what]
    docker = dockers[SOURCE]
    network = [] if "--network" in options else ["--network", "none"]
    try:
        docker("run", "--detach", "--name", "odd", *network, *options, IMAGE)
        with pytest.raises(Refused, match=re.escape(reason)) as refusal:
            lab.controller.adopt_service("odd", "docker", "odd", SOURCE)
        assert "\n" not in str(refusal.value)
        assert docker.names(all_of_them=False) == ["odd"], "it is left as it was"
        assert lab.leftovers(SOURCE, "odd") == []
    finally:
        docker("rm", "--force", "odd")


def test_bad_input_is_named(lab: Lab, start: Start, dockers: Dockers) -> None:
    with pytest.raises(BadInput, match="No such container: nobody"):
        lab.controller.adopt_service("x", "docker", "nobody", SOURCE)
    with pytest.raises(BadInput, match="knows no engine runc"):
        lab.controller.adopt_service("x", "runc", "web", SOURCE)
    dockers[SOURCE]("create", "--name", "still", IMAGE)
    with pytest.raises(Refused, match="container still is created: only a running one can move"):
        lab.controller.adopt_service("x", "docker", "still", SOURCE)
    dockers[SOURCE]("rm", "still")
    start()
    with pytest.raises(BadInput, match="is service web already"):
        lab.controller.adopt_service("x", "docker", "web", SOURCE)


@pytest.mark.thorough
def test_an_image_that_is_missing_there_is_brought_ahead(start: Start, dockers: Dockers) -> None:
    """Out of the one daemon into the other, under its name, before the freeze."""
    web, there = start(), dockers[DESTINATION]
    count, _ = web.user.ask("count")
    digest = dockers[SOURCE]("image", "inspect", "--format", "{{.Id}}", IMAGE)
    there("rmi", IMAGE)
    record = web.migrate(DESTINATION)
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    goes_on(web, count)
    assert there("image", "inspect", "--format", "{{.Id}}", IMAGE) == digest
    assert record.image_bytes > 1 << 20
    assert record.bytes_sent > record.image_bytes
    assert web.migrate(SOURCE).image_bytes == 0, "it is there"


def test_the_destination_must_be_able_to_take_it(start: Start, dockers: Dockers) -> None:
    web, there = start("--volume", "kept:/keep"), dockers[DESTINATION]

    def refusal() -> str:
        record = web.migrate(DESTINATION)
        assert record.outcome is not Outcome.DONE
        assert record.freeze_ms == 0
        return record.error

    there("create", "--name", "web", IMAGE)
    assert "has a container web there already" in refusal()
    there("rm", "web")
    there("volume", "create", "kept")
    assert "has a volume kept there already" in refusal()
    there("volume", "rm", "kept")
    web.user.ask("count")
    dockers[SOURCE]("exec", "--detach", "web", "/usr/bin/python3", "-c", "import time; time.sleep(20)")
    assert "entered the container from outside" in refusal()
