"""The service's address moves between edges; users behind either gateway lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time

import pytest
from network_region import ADDRESS, SERVICE, Region, is_open
from network_talk import PORT, Echo, Talk

from whimbrel.migrate import gateways
from whimbrel.model.node import Endpoint, Role
from whimbrel.network import netlink, netns
from whimbrel.network.hold import ROUTE_OWNER, HoldTable
from whimbrel.network.names import mac_of, stand_in
from whimbrel.network.overlay import wait_until
from whimbrel.network.port import LONG_HOLD_S, PortInfo, ServicePort
from whimbrel.wire.calls import RenewHold
from whimbrel.wire.rpc import EmitEvent, RpcServer

pytestmark = pytest.mark.real
TARGET = "10.77.1.1"
STAND_IN = stand_in("a migration")
NOBODY = "10.77.9.9"
GAP_S = 0.08


def _ping(region, source: str = "10.99.0.2", timeout_s: float = 1.0) -> bool:
    argv = ["ping", "-q", "-c1", f"-W{timeout_s}", "-I", source, TARGET]
    return netns.call(
        region.path("ue-1"), lambda: subprocess.run(argv, capture_output=True, check=False).returncode == 0
    )


def test_a_port_is_shut_until_it_is_opened_and_stays_so(region) -> None:
    info = region.create("edge-1")
    ports = region.ports["edge-1"]
    # longer than the kernel takes to act on a carrier change, which would enable the port
    time.sleep(1.3)
    assert not region.run("edge-1", is_open, SERVICE)
    assert not _ping(region, timeout_s=0.3)
    ports.open(SERVICE)
    assert _ping(region)
    ports.close(SERVICE)
    assert not _ping(region, timeout_s=0.3)
    assert info.mac == mac_of(ADDRESS)
    assert info.netns_path.exists()


def test_users_of_both_gateways_reach_the_service(region) -> None:
    region.create("edge-2")
    region.ports["edge-2"].open(SERVICE)
    assert _ping(region, "10.99.0.2")
    assert _ping(region, "10.99.1.2")


def test_nothing_is_lost_when_the_service_moves(region) -> None:
    """1,000 datagrams a second by each gateway through a gap; the outage that the client sees is the gap."""
    first, second = region.create("edge-1"), region.create("edge-2")
    source, destination = region.ports["edge-1"], region.ports["edge-2"]
    source.open(SERVICE)
    echo = Echo(first.netns_path)
    talks = [
        Talk(region.path("ue-1"), TARGET, "10.99.0.2"),
        Talk(region.path("ue-1"), TARGET, "10.99.1.2", rate=250),
    ]
    for gateway, hold in region.holds.items():
        region.run(gateway, hold.prepare, ADDRESS)
    for talk in talks:
        talk.start()
    time.sleep(0.4)

    begin = time.monotonic()
    for hold in region.holds.values():
        hold.hold(ADDRESS, STAND_IN)
    assert wait_until(lambda: source.receive_queue_bytes(SERVICE) == 0)
    time.sleep(0.02)  # what was read is answered
    source.close(SERVICE)
    echo.close()
    echo = Echo(second.netns_path)
    connecting = netns.call(region.path("ue-1"), lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    connecting.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        connecting.connect((TARGET, PORT))  # a handshake begun in the gap
    time.sleep(max(0.0, begin + GAP_S - time.monotonic()))
    destination.open(SERVICE)
    destination.announce(SERVICE, STAND_IN)
    gap_ms = (time.monotonic() - begin) * 1e3
    _wait_connected(connecting)
    connecting.settimeout(0.5)
    connecting.sendall(b"hello\n")
    assert connecting.recv(16) == b"hello\n"
    time.sleep(0.4)
    for talk in talks:
        talk.finish()
    echo.close()
    connecting.close()
    assert [talk.lost for talk in talks] == [[], []]
    for talk in talks:
        # one that arrives in the very instant of the release may overtake the queue
        held = [number for number in talk.order if talk.delays_s[number] > 0.02]
        assert held, "nothing was sent in the gap"
        assert held == sorted(held), "held packets keep their order"
        assert talk.outage_ms < gap_ms + 500, "something waited for a timer of the kernel's, all of which take a second"
    assert not any(hold.is_held(ADDRESS) for hold in region.holds.values())


def _wait_connected(sock: socket.socket) -> None:
    deadline = time.monotonic() + 0.5  # a lost SYN would come again after 1 s
    while time.monotonic() < deadline:
        try:
            sock.getpeername()
            return
        except OSError:
            time.sleep(0.001)
    raise AssertionError("the handshake begun in the gap did not go on at its end")


def test_a_hold_keeps_packets_though_the_old_place_would_still_answer(region) -> None:
    """The source runs on while it drains; an ARP question would be answered there and end the hold."""
    info = region.create("edge-1")
    region.ports["edge-1"].open(SERVICE)
    echo = Echo(info.netns_path)
    hold = region.holds["gw-1"]
    region.run("gw-1", hold.prepare, ADDRESS)
    talk = Talk(region.path("ue-1"), TARGET, rate=500)
    talk.start()
    time.sleep(0.1)
    hold.hold(ADDRESS, STAND_IN)
    time.sleep(0.05)
    answered = len(talk.order)
    time.sleep(1.5)  # longer than the kernel's retry timer
    assert hold.is_held(ADDRESS)
    assert len(talk.order) == answered
    hold.release(ADDRESS, info.mac)
    time.sleep(0.2)
    talk.finish()
    echo.close()
    assert talk.lost == [], "more than the default queue's 270 datagrams were held"
    assert max(talk.delays_s.values()) > 1.4


def _ask_for_a_neighbour() -> None:
    """A broadcast that every gateway reads: who sends it is where it comes from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (NOBODY, 9))


def _held(region: Region) -> tuple[PortInfo, ServicePort, HoldTable]:
    """A service, its node's ports, and the gateway that holds its packets."""
    info = region.create("edge-1")
    port, hold = region.ports["edge-1"], region.holds["gw-1"]
    port.open(SERVICE)
    assert _ping(region)
    region.run("gw-1", hold.prepare, ADDRESS)
    hold.hold(ADDRESS, STAND_IN)
    return info, port, hold


@pytest.mark.parametrize("says", ["announces itself", "asks for a neighbour"])
def test_nothing_that_the_service_says_at_its_old_place_ends_a_hold(region, says: str) -> None:
    """Its kernel runs on until the port is shut, and announcements are repeated for two seconds after a move."""
    info, port, hold = _held(region)
    for _ in range(3):
        port.announce(SERVICE) if says == "announces itself" else netns.call(info.netns_path, _ask_for_a_neighbour)
        time.sleep(0.1)
        assert hold.is_held(ADDRESS)
        assert not _ping(region, timeout_s=0.1)
    hold.release(ADDRESS, info.mac)
    assert _ping(region)


def test_announced_packets_flow_on_though_the_gateway_s_agent_is_dead(region) -> None:
    """Nobody is the stand-in: a kernel that asked for it, as it does 5 s later, would find nobody."""
    _, port, hold = _held(region)
    hold._timer.cancel()  # as good as dead: it looks no more
    region.run("gw-1", netns.write_sysctl, "net/ipv4/neigh/wb0/retrans_time_ms", 50)
    port.announce(SERVICE, STAND_IN)
    until = time.monotonic() + 6.5
    while time.monotonic() < until:
        assert _ping(region)
        time.sleep(0.25)
    fresh = region.run("gw-1", HoldTable)
    assert not region.run("gw-1", netlink.detours, fresh._route, fresh._ifindex, ROUTE_OWNER)
    assert _ping(region)


def test_what_was_held_for_long_is_not_too_much_at_once(region) -> None:
    """An announcement lets it all go in one go, and a processor's backlog takes 1,000 frames; the rest is dropped."""
    info, port, hold = _held(region)
    echo = Echo(info.netns_path)
    talk = Talk(region.path("ue-1"), TARGET, rate=2000)
    talk.start()
    assert wait_until(lambda: len(talk.sent) > 2500, timeout_s=20)
    port.announce(SERVICE, STAND_IN, held_s=LONG_HOLD_S)
    assert hold.is_held(ADDRESS)
    hold.release(ADDRESS, info.mac)
    time.sleep(0.5)
    talk.finish()
    echo.close()
    assert not talk.lost
    assert len(talk.order) > 2500


def test_what_was_held_for_long_leaves_though_nobody_releases_it(region) -> None:
    _, port, hold = _held(region)
    hold._timer.cancel()  # as good as dead
    port.announce(SERVICE, STAND_IN, held_s=LONG_HOLD_S)
    assert not _ping(region, timeout_s=0.2)
    assert wait_until(lambda: _ping(region), timeout_s=5.0)


def test_what_an_announcement_ended_is_taken_away_though_nobody_releases(region) -> None:
    _, port, hold = _held(region)
    port.announce(SERVICE, STAND_IN)
    assert _ping(region)

    def detours() -> dict[str, str]:
        return region.run("gw-1", netlink.detours, hold._route, hold._ifindex, ROUTE_OWNER)

    assert detours() == {TARGET: STAND_IN}
    assert wait_until(lambda: not detours(), timeout_s=5.0)
    assert _ping(region)


def test_the_next_migration_holds_though_the_last_one_is_announced_still(region) -> None:
    info, port, hold = _held(region)
    port.announce(SERVICE, STAND_IN)
    hold.hold(ADDRESS, stand_in("the next migration"))  # the last one was not released either
    port.announce(SERVICE, STAND_IN)
    hold.release(ADDRESS, info.mac, STAND_IN)  # and late
    time.sleep(0.2)
    assert hold.is_held(ADDRESS)
    assert not _ping(region, timeout_s=0.1)
    port.announce(SERVICE, stand_in("the next migration"))
    assert _ping(region)
    hold.release(ADDRESS, info.mac)


def test_a_hold_that_nobody_ends_ends_itself(region) -> None:
    region.create("edge-1")
    region.ports["edge-1"].open(SERVICE)
    hold = region.run("gw-1", lambda: HoldTable(longest_hold_s=0.2))
    hold.hold(ADDRESS, STAND_IN)
    assert not _ping(region, timeout_s=0.1)
    assert wait_until(lambda: not hold.is_held(ADDRESS))
    assert _ping(region)


def test_a_hold_that_is_renewed_lasts_and_one_that_has_ended_is_not_taken_up_again(region) -> None:
    region.create("edge-1")
    region.ports["edge-1"].open(SERVICE)
    hold = region.run("gw-1", lambda: HoldTable(longest_hold_s=1.0))
    hold.hold(ADDRESS, STAND_IN)
    for _ in range(15):
        hold.renew(ADDRESS)
        time.sleep(0.1)
    assert hold.is_held(ADDRESS), "three halves of what it lasts unasked"
    assert wait_until(lambda: not hold.is_held(ADDRESS))
    hold.renew(ADDRESS)
    assert not hold.is_held(ADDRESS)
    assert _ping(region)


def test_a_migration_renews_its_holds_as_long_as_its_freeze_lasts(region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "RENEW_EVERY_S", 0.1)
    region.create("edge-1")
    hold = region.run("gw-1", lambda: HoldTable(longest_hold_s=1.0))

    async def renew(call: RenewHold, _: EmitEvent) -> None:
        hold.renew(call.address)

    async def freeze() -> bool:
        server = RpcServer({RenewHold: renew})
        port = await server.start("127.0.0.1", 0)
        agent = Endpoint(name="gw-1", role=Role.GATEWAY, host="127.0.0.1", port=port, overlay_host="127.0.0.1")
        hold.hold(ADDRESS, STAND_IN)
        async with gateways.keep_holding([agent], ADDRESS.split("/")[0]):
            await asyncio.sleep(1.5)
            held = hold.is_held(ADDRESS)
        await server.close()
        return held

    assert asyncio.run(freeze())
    assert wait_until(lambda: not hold.is_held(ADDRESS)), "nobody renews it any more"


def test_a_restarted_gateway_agent_releases_what_its_forerunner_held(region) -> None:
    region.create("edge-1")
    region.ports["edge-1"].open(SERVICE)
    region.holds["gw-1"].hold(ADDRESS, STAND_IN)
    assert not _ping(region, timeout_s=0.1)
    fresh = region.run("gw-1", HoldTable)
    assert not fresh.is_held(ADDRESS)
    assert _ping(region)


def test_restore_releases_and_gives_the_queue_its_usual_size_back(region) -> None:
    def size() -> str:
        return region.run("gw-1", netns.read_sysctl, "net/ipv4/neigh/wb0/unres_qlen_bytes")

    usual = size()
    hold = region.holds["gw-1"]
    region.run("gw-1", hold.prepare, ADDRESS)
    hold.hold(ADDRESS, STAND_IN)
    assert size() == str(16 << 20)
    region.run("gw-1", hold.restore)
    assert size() == usual
    assert not hold.is_held(ADDRESS)


@pytest.mark.parametrize("reads", [True, False], ids=("reads", "reads nothing"))
def test_what_had_arrived_is_waited_for_while_it_is_read(region, reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not read has to cross."""
    if reads:  # a busy machine may not let the reader run for longer than a freeze has patience
        monkeypatch.setattr(gateways, "UNREAD_LIMIT_S", 5.0)
        monkeypatch.setattr(gateways, "DRAIN_LIMIT_S", 10.0)
    info = region.create("edge-1")
    port = region.ports["edge-1"]
    ours, theirs = netns.call(info.netns_path, lambda: [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "ab"])
    with ours, theirs:
        theirs.bind(("127.0.0.1", 0))
        for _ in range(40):
            ours.sendto(b"x", theirs.getsockname())
        left = 40

        def read_slowly() -> None:
            nonlocal left
            while reads and left:
                theirs.recv(16)
                left -= 1
                time.sleep(0.0002)

        reader = threading.Thread(target=read_slowly)
        reader.start()
        gateways.drain(port, SERVICE)
        waiting_bytes = port.receive_queue_bytes(SERVICE)
        reader.join()
        assert (waiting_bytes == 0) is reads
        assert left == (0 if reads else 40)
