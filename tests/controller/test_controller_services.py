"""Services through the real controller process and its client; the agents are in memory."""

from __future__ import annotations

import threading

import pytest
from msgspec.structs import replace

from fakes import FakeRegion
from live_controller import LiveController, wait_until
from whimbrel.controller.client import ControllerClient
from whimbrel.model.errors import BadInput, Conflict, Unreachable, WhimbrelError
from whimbrel.model.service import ServiceState


def test_every_agent_hears_of_all_nodes_also_after_it_was_away(region: FakeRegion, client: ControllerClient) -> None:
    agent = region.agents["edge-2"]
    everybody = {one.endpoint for one in region.agents.values()}
    wait_until(lambda: agent.peers, "edge-2 hears of its peers")
    assert set(agent.peers[-1]) == everybody
    agent.peers.clear()
    region.down("edge-2")
    region.up("edge-2")
    wait_until(lambda: agent.peers, "edge-2 hears of its peers again")
    assert set(agent.peers[-1]) == everybody


def test_nodes_are_shown_live(region: FakeRegion, client: ControllerClient) -> None:
    client.run_service("demo", "oci:/x", "edge-1")
    region.down("edge-3")
    nodes = {node.name: node for node in client.nodes()}
    assert list(nodes) == ["edge-1", "edge-2", "edge-3", "gw-1"]
    assert nodes["edge-1"].up
    assert nodes["edge-1"].services == ("demo",)
    assert nodes["edge-1"].capabilities is not None
    assert nodes["edge-1"].capabilities.criu == "4.2.1"
    assert not nodes["edge-3"].up
    assert "edge-3" in nodes["edge-3"].error


def test_run_inspect_logs_exec_remove(client: ControllerClient) -> None:
    started = client.run_service(
        "demo", "oci:/x", "edge-2", ports=["7/udp"], args=["serve"], env=["A=b"], memory_limit_bytes=1 << 20,
        workload="w",
    )  # fmt: skip
    assert started.node == "edge-2"
    assert started.state is ServiceState.RUNNING
    spec = client.service("demo").spec
    assert (spec.ports, spec.args, spec.env, spec.memory_limit_bytes, spec.workload) == (
        ("7/udp",), ("serve",), ("A=b",), 1 << 20, "w",
    )  # fmt: skip
    assert client.logs("demo", tail_bytes=9) == "line two\n"
    assert client.exec("demo", ["echo", "hi"]).stdout == "hi\n"
    assert [status.spec.name for status in client.services()] == ["demo"]
    client.remove_service("demo")
    assert client.services() == []


def test_free_addresses_are_chosen_and_used_again(client: ControllerClient) -> None:
    first = client.run_service("a", "oci:/x", "edge-1").spec.address
    second = client.run_service("b", "oci:/x", "edge-2").spec.address
    assert (first, second) == ("10.77.1.1/16", "10.77.1.2/16")
    client.remove_service("a")
    assert client.run_service("c", "oci:/x", "edge-3").spec.address == first
    assert client.run_service("d", "oci:/x", "edge-3", address="10.77.9.9").spec.address == "10.77.9.9/16"


def test_starts_at_the_same_time_get_different_addresses(live: LiveController, region: FakeRegion) -> None:
    addresses: list[str] = []

    def start(n: int) -> None:
        with live.client() as client:
            addresses.append(client.run_service(f"s{n}", "oci:/x", f"edge-{n % 3 + 1}").spec.address)

    threads = [threading.Thread(target=start, args=(n,)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(addresses)) == 9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"node": "edge-9"}, "there is no node 'edge-9': the region has edge-1, edge-2, edge-3, gw-1"),
        ({"node": "gw-1"}, "gw-1 is a gateway and runs no services: choose one of edge-1, edge-2, edge-3"),
        ({"name": "old"}, "'old' is already used on edge-1"),
        ({"address": "10.77.3.3/16"}, "10.77.3.3 is already used by service old on edge-1"),
        ({"address": "10.77.0.1"}, "not in the service pool 10.77.1.0 to 10.77.255.254"),
        ({"address": "192.0.2.7"}, "not in the service pool"),
        ({"address": "10.77.255.255"}, "not in the service pool"),
        ({"address": "10.77.4.4/24"}, "write 10.77.4.4/16"),
        ({"address": "nonsense"}, "not an IPv4 address"),
        ({"name": "Not A Name"}, "not valid"),
        ({"ports": ["80"]}, "N/tcp or N/udp"),
        ({"image": "docker:x"}, "no reference"),
    ],
)
def test_bad_input_is_named(client: ControllerClient, arguments: dict[str, str], says: str) -> None:
    client.run_service("old", "oci:/x", "edge-1", address="10.77.3.3")
    with pytest.raises(BadInput) as caught:
        client.run_service(**{"name": "new", "image": "oci:/x", "node": "edge-2", **arguments})  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert [status.spec.name for status in client.services()] == ["old"]


@pytest.mark.parametrize("method", ["service", "logs", "remove_service"])
def test_an_unknown_service(client: ControllerClient, method: str) -> None:
    client.run_service("demo", "oci:/x", "edge-1")
    with pytest.raises(BadInput, match="there is no service 'nope': running are demo"):
        getattr(client, method)("nope")


def test_names_that_are_not_url_safe(client: ControllerClient) -> None:
    with pytest.raises(BadInput, match=r"there is no service 'x\?y#ä'"):
        client.service("x?y#ä")
    for name in ("", "..", "../x"):
        with pytest.raises(BadInput, match="is no name"):
            client.service(name)


def test_an_agent_that_is_down_keeps_its_claims(region: FakeRegion, client: ControllerClient) -> None:
    client.run_service("demo", "oci:/x", "edge-1", address="10.77.1.1")
    assert len(client.services()) == 1
    region.down("edge-1")
    listed = client.service_list()
    assert listed.services == ()
    assert listed.unreachable == ("edge-1",)
    with pytest.raises(Unreachable, match="demo was last seen on edge-1"):
        client.service("demo")
    with pytest.raises(BadInput, match="'demo' is already used on edge-1"):
        client.run_service("demo", "oci:/x", "edge-2")
    assert client.run_service("other", "oci:/x", "edge-2").spec.address == "10.77.1.2/16"
    with pytest.raises(Unreachable, match="agent of edge-1"):
        client.run_service("third", "oci:/x", "edge-1")
    with pytest.raises(BadInput, match="edge-1 did not answer and may run it"):
        client.service("unheard-of")


def test_a_moving_service_cannot_be_removed(region: FakeRegion, client: ControllerClient) -> None:
    client.run_service("demo", "oci:/x", "edge-1")
    region.go.clear()
    started = client.start_migration("demo", "edge-2")
    with pytest.raises(Conflict, match=f"migration {started.id}"):
        client.remove_service("demo")
    region.go.set()
    client.follow(started.id)
    client.remove_service("demo")


def test_the_same_name_on_both_sides_of_a_move_is_shown_once(region: FakeRegion, client: ControllerClient) -> None:
    client.run_service("demo", "oci:/x", "edge-1")
    running = region.agents["edge-1"].services["demo"]
    region.agents["edge-2"].services["demo"] = replace(running, node="edge-2", state=ServiceState.STARTING)
    assert [(status.node, status.state) for status in client.services()] == [("edge-1", "running")]


def test_errors_cross_the_wire_with_their_type(region: FakeRegion, client: ControllerClient) -> None:
    with pytest.raises(WhimbrelError) as caught:
        client.exec("demo", ["ls"])
    assert type(caught.value) is BadInput
