"""Services of one node: they run with all their parts, and leave none of them behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from service_node import ServiceNode, answers, until

from whimbrel.agent.place import Place
from whimbrel.agent.service_calls import ServiceCalls
from whimbrel.agent.services import ServiceHost
from whimbrel.model.errors import BadInput, Conflict, Refused, WhimbrelError
from whimbrel.model.service import ServiceSpec, ServiceState, ServiceStatus
from whimbrel.network.port import ServicePort
from whimbrel.runtime.logger import pack_logs
from whimbrel.runtime.runc import Runc
from whimbrel.wire import calls

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for containers"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ServiceNode]:
    made = ServiceNode(tmp_path, "a")
    try:
        yield made
    finally:
        made.close()


async def call(host: ServiceHost, request: calls.Call) -> Any:
    """As the RPC server does, msgpack included."""
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=calls.AnyCall)
    reply = await ServiceCalls(host).handlers()[type(decoded)](decoded, lambda _: None)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=request.reply)


def test_service_runs_is_seen_and_leaves_nothing(node: ServiceNode) -> None:
    async def story(host: ServiceHost) -> None:
        before = time.time()
        status = await call(host, calls.RunService(spec=node.spec(env=("COLOUR=red",))))
        assert (status.state, status.node, status.processes) == (ServiceState.RUNNING, node.name, 1)
        assert status.mac == "02:77:0a:4d:09:01"
        assert status.rss_bytes > 100_000
        assert before <= status.started_unix_s <= time.time()
        assert status.image_digest.startswith("sha256:")
        assert Path(f"/proc/{status.pid}").exists()
        assert await answers(status.spec.address)
        (listed,) = await call(host, calls.ListServices())
        assert listed.pid == (await call(host, calls.InspectService(name="svc"))).pid == status.pid
        result = await call(
            host,
            calls.ExecInService(name="svc", argv=("/bin/sh", "-c", "echo $COLOUR; cat /proc/sys/kernel/hostname")),
        )
        assert result.exit_code == 0
        logs = node.state_dir / "services/svc/logs"
        await until(lambda: b"started" in b"".join(path.read_bytes() for path in logs.glob("*.log")))
        assert await call(host, calls.ServiceLogs(name="svc")) == "started\n"
        await call(host, calls.RemoveService(name="svc"))
        assert await call(host, calls.ListServices()) == ()
        assert not await answers(status.spec.address)

    node.run(story)
    node.assert_clean()


def test_names_and_addresses_are_not_given_twice(node: ServiceNode) -> None:
    async def story(host: ServiceHost) -> None:
        both = await asyncio.gather(host.run(node.spec()), host.run(node.spec(number=2)), return_exceptions=True)
        assert [type(result).__name__ for result in both] == ["ServiceStatus", "BadInput"]
        with pytest.raises(BadInput, match=r"service svc on .* already"):
            await host.run(node.spec(number=3))
        with pytest.raises(BadInput, match=r"address 10\.77\.9\.1 is used by service svc"):
            await host.run(node.spec("other"))
        with pytest.raises(BadInput, match="not an IPv4 address"):
            await host.run(ServiceSpec(name="other", image="rootfs:/", address="10.77.9.300/16"))
        assert host.names() == ["svc"]
        await host.run(node.spec("other", number=2))
        assert host.names() == ["other", "svc"]

    node.run(story)


def test_unknown_service_is_one_clear_line(node: ServiceNode) -> None:
    async def story(host: ServiceHost) -> None:
        for request in (
            calls.InspectService(name="ghost"),
            calls.RemoveService(name="ghost"),
            calls.ServiceLogs(name="../../etc"),
            calls.ExecInService(name="ghost", argv=("true",)),
            calls.AddLogs(name="ghost", segments=b""),
        ):
            with pytest.raises(BadInput, match="there is no service") as caught:
                await call(host, request)
            assert "\n" not in str(caught.value)

    node.run(story)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": "oci:/nowhere/at/all"}, "no folder"),
        ({"args": ()}, "names no command"),
        ({"args": ("/no/such/program",)}, "/no/such/program"),
        ({"env": ("BROKEN",)}, "NAME=VALUE"),
    ],
    ids=["no image", "no command", "no program", "bad setting"],
)
def test_service_that_cannot_start_leaves_nothing(node: ServiceNode, fields: dict[str, Any], words: str) -> None:
    async def story(host: ServiceHost) -> None:
        with pytest.raises(WhimbrelError, match=words) as caught:
            await host.run(msgspec.structs.replace(node.spec(), **fields))
        assert "\n" not in str(caught.value)
        assert host.names() == []

    node.run(story)
    node.assert_clean()


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (Place, "create"),
        (Place, "write_bundle"),
        (ServicePort, "create"),
        (ServicePort, "open"),
        (ServicePort, "announce"),
        (Runc, "create"),
        (Runc, "start"),
    ],
)
def test_failure_of_any_step_undoes_the_ones_before(
    node: ServiceNode, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    real = getattr(owner, step)
    is_async = asyncio.iscoroutinefunction(real)

    def fails(*args: Any, **kwargs: Any) -> Any:
        if not is_async:
            real(*args, **kwargs)
        raise WhimbrelError(f"{step} went wrong")

    async def fails_async(*args: Any, **kwargs: Any) -> Any:
        await real(*args, **kwargs)
        fails()

    async def story(host: ServiceHost) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, fails_async if is_async else fails)
            with pytest.raises(WhimbrelError, match="went wrong"):
                await host.run(node.spec())
        node.assert_clean()
        await host.run(node.spec())  # name and address are free again
        await host.remove("svc")

    node.run(story)
    node.assert_clean()


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.06, 0.1, 0.15])
def test_caller_that_leaves_half_way_leaves_nothing(node: ServiceNode, after_s: float) -> None:
    async def story(host: ServiceHost) -> None:
        starting = asyncio.create_task(host.run(node.spec()))
        await asyncio.sleep(after_s)
        starting.cancel()
        (result,) = await asyncio.gather(starting, return_exceptions=True)
        if not isinstance(result, asyncio.CancelledError):
            await host.remove("svc")
        assert host.names() == []

    node.run(story)
    node.assert_clean()


def test_caller_that_leaves_while_all_is_looked_at_leaves_nothing(
    node: ServiceNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe, looking = ServiceHost._observe, threading.Event()

    def slowly(host: ServiceHost, status: ServiceStatus) -> ServiceStatus:
        looking.set()
        time.sleep(0.2)
        return observe(host, status)

    async def story(host: ServiceHost) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(ServiceHost, "_observe", slowly)
            starting = asyncio.create_task(host.run(node.spec()))
            assert await asyncio.to_thread(looking.wait, 20)
            starting.cancel()
            (result,) = await asyncio.gather(starting, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError)
        assert host.names() == []

    node.run(story)
    node.assert_clean()


def test_memory_limit_ends_a_service_that_passes_it(node: ServiceNode) -> None:
    async def story(host: ServiceHost) -> None:
        script = "x=xxxxxxxxxxxxxxxx; while true; do x=$x$x; done"
        await host.run(node.spec(script=script, memory_limit_bytes=20 << 20))
        async with asyncio.timeout(10):
            while (await host.inspect("svc")).state is not ServiceState.STOPPED:
                await asyncio.sleep(0.02)
        stopped = await host.inspect("svc")
        assert (stopped.pid, stopped.rss_bytes, stopped.processes) == (0, 0, 0)
        with pytest.raises(Refused, match="has stopped"):
            await call(host, calls.ExecInService(name="svc", argv=("/bin/cat",)))
        await host.remove("svc")

    node.run(story)
    node.assert_clean()


def test_restarted_agent_finds_services_and_removes_half_started_ones(node: ServiceNode) -> None:
    pids: dict[str, int] = {}

    async def first(host: ServiceHost) -> None:
        for number, name in enumerate(("runs", "stops", "half"), 1):
            pids[name] = (await host.run(node.spec(name, number=number))).pid
        os.kill(pids["stops"], signal.SIGKILL)
        place = host.place("half")
        record = place.load()
        assert record is not None
        starting = msgspec.structs.replace(record.status, state=ServiceState.STARTING)
        place.save(msgspec.structs.replace(record, status=starting))

    async def second(host: ServiceHost) -> None:
        assert host.names() == ["runs", "stops"]
        listed = {status.spec.name: status for status in await call(host, calls.ListServices())}
        assert (listed["runs"].state, listed["runs"].pid) == (ServiceState.RUNNING, pids["runs"])
        assert listed["stops"].state is ServiceState.STOPPED
        assert not Path(f"/proc/{pids['half']}/root/bin").exists()
        assert await answers(listed["runs"].spec.address)
        with pytest.raises(BadInput, match="already"):
            await host.run(node.spec("runs", number=9))
        await host.run(node.spec("half", number=3))
        for name in host.names():
            await host.remove(name)

    node.run(first)
    node.run(second)
    node.assert_clean()


def test_removal_waits_for_a_migration(node: ServiceNode) -> None:
    async def story(host: ServiceHost) -> None:
        await host.run(node.spec())
        with host.migrating("svc"):
            assert (await host.inspect("svc")).state is ServiceState.MIGRATING
            with pytest.raises(Conflict, match="is being migrated"):
                await host.remove("svc")
            with pytest.raises(Conflict, match="is being migrated"), host.migrating("svc"):
                pass
            with pytest.raises(Conflict, match="is being migrated"):
                await call(host, calls.ExecInService(name="svc", argv=("/bin/cat",)))
        assert (await host.inspect("svc")).state is ServiceState.RUNNING

    node.run(story)


def test_removal_goes_on_past_a_step_that_fails(node: ServiceNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(host: ServiceHost) -> None:
        status = await host.run(node.spec())

        def broken(*_: object) -> None:
            raise WhimbrelError("the network is stuck")

        with monkeypatch.context() as patch:
            patch.setattr(ServicePort, "remove", broken)
            with pytest.raises(WhimbrelError, match="stuck"):
                await host.remove("svc")
        assert not (node.state_dir / "services/svc").exists()
        assert await host.runc.list() == ()
        assert not Path(f"/proc/{status.pid}/root/bin").exists()
        await host.discard("svc")

    node.run(story)
    node.assert_clean()


def test_place_for_a_service_to_come_is_made_and_undone(node: ServiceNode, tmp_path: Path) -> None:
    other = ServiceNode(tmp_path, "b")

    async def on_the_source(host: ServiceHost) -> None:
        nonlocal status
        status = await host.run(node.spec())
        await until(lambda: b"started" in pack_logs(host.place("svc").logs))
        logs.append(pack_logs(host.place("svc").logs))

    async def on_the_destination(host: ServiceHost) -> None:
        await host.prepare_incoming(status)
        assert host.names() == []  # not here yet
        with pytest.raises(BadInput, match="no service"):
            await host.inspect("svc")
        with pytest.raises(BadInput, match="already"):
            host.refuse_taken(status.spec)
        waiting = host.runc.init_process("svc")
        assert waiting is not None
        assert waiting.alive
        assert (await host.runc.state("svc")).status == "created"
        assert not await answers(status.spec.address)  # the port is closed
        with pytest.raises(WhimbrelError, match="no restored process"):
            host.restored_pid("svc")
        await call(host, calls.AddLogs(name="svc", segments=logs[0]))
        restarted = other.host()
        await restarted.load()
        assert restarted.names() == []
        await host.discard("svc")
        host.refuse_taken(status.spec)
        other.assert_clean()
        await host.prepare_incoming(status)
        restarted = other.host()
        await restarted.load()
        await restarted.sweep()
        other.assert_clean()

    async def with_another_image(host: ServiceHost) -> None:
        with pytest.raises(Refused, match="another image"):
            await host.prepare_incoming(msgspec.structs.replace(status, image_digest="sha256:" + "0" * 64))
        gone = msgspec.structs.replace(
            status,
            spec=msgspec.structs.replace(status.spec, image="oci:/nowhere"),
            image_digest="sha256:" + "0" * 64,
        )
        with pytest.raises(Refused, match="has no image"):
            await host.prepare_incoming(gone)

    status: Any = None
    logs: list[bytes] = []
    try:
        node.run(on_the_source)
        other.run(on_the_destination)
        other.run(with_another_image)
        other.assert_clean()
    finally:
        other.close()


def test_adopted_service_is_this_nodes_own(node: ServiceNode) -> None:
    """With a stand-in for the restored tree; the real restore is tested with runc and in the migrations."""

    async def story(host: ServiceHost) -> None:
        status = await host.run(node.spec())
        await host.discard("svc")
        await host.prepare_incoming(msgspec.structs.replace(status, node="elsewhere"))
        sleeper = await asyncio.create_subprocess_exec("sleep", "1000")
        host.place("svc").cgroup.attach(sleeper.pid)
        adopted = await host.adopt_incoming(status, sleeper.pid)
        assert (adopted.pid, adopted.state, adopted.node) == (sleeper.pid, ServiceState.RUNNING, node.name)
        assert (adopted.migrations, adopted.started_unix_s) == (1, status.started_unix_s)
        assert host.restored_pid("svc") == sleeper.pid
        assert host.names() == ["svc"]
        assert not (node.state_dir / "run/waiting/svc").exists()
        restarted = node.host()
        await restarted.load()
        assert (await restarted.inspect("svc")).migrations == 1
        await restarted.remove("svc")
        assert await sleeper.wait() == -signal.SIGKILL

    node.run(story)
    node.assert_clean()
