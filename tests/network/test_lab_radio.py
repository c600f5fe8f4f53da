"""The lab's radio: a user goes from one gateway to the next; its address and connections stay."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from network_region import SERVICE, Region, made
from network_talk import PORT, Echo, Talk
from pyroute2 import IPRoute

from whimbrel.lab.radio import LabRadio, UserLinks
from whimbrel.model.errors import BadInput, Conflict, StepFailed
from whimbrel.network import netns
from whimbrel.network.announce import Announcer
from whimbrel.network.names import mac_of
from whimbrel.network.overlay import wait_until
from whimbrel.ran.handover import InFlight

pytestmark = pytest.mark.real
TARGET = "10.77.1.1"
OWN = "10.77.255.254"
INTERRUPTION_MS = 300.0
MARGIN_S = 0.05


# A user's links and addresses stay as its last handover left them: each test has nodes of its own.
built = pytest.fixture(made, name="built")


@pytest.fixture
def service(region: Region) -> Iterator[Region]:
    """An echo service on edge-2."""
    info = region.create("edge-2")
    region.ports["edge-2"].open(SERVICE)
    echo = Echo(info.netns_path)
    try:
        yield region
    finally:
        echo.close()


@pytest.fixture
def radio(service: Region) -> Iterator[LabRadio]:
    with LabRadio(service.topology, interruption_ms=INTERRUPTION_MS) as made:
        made.attach("ue-1", "gw-1")
        yield made


def connect(region: Region) -> socket.socket:
    return netns.call(region.path("ue-1"), lambda: socket.create_connection((TARGET, PORT), timeout=5))


def ask(conn: socket.socket, text: bytes) -> bytes:
    conn.sendall(text)
    return conn.recv(64)


def ping(region: Region, source: str, timeout_s: float = 0.5) -> bool:
    argv = ["ping", "-q", "-c1", f"-W{timeout_s}", "-I", source, TARGET]
    return (
        netns.call(region.path("ue-1"), lambda: subprocess.run(argv, capture_output=True, check=False)).returncode == 0
    )


def way_back(region: Region) -> str:
    """The Ethernet address that the service sends its answers for the user to."""

    def look() -> str:
        with IPRoute() as ip:
            (entry,) = ip.get_neighbours(family=socket.AF_INET, dst=OWN)
            return str(entry.get_attr("NDA_LLADDR"))

    return netns.call(region.ports["edge-2"].path(SERVICE), look)


def test_a_handover_loses_nothing_and_keeps_address_and_connections(
    service: Region, radio: LabRadio, record_property
) -> None:
    conn = connect(service)
    assert conn.getsockname()[0] == OWN == radio.address("ue-1")
    assert ask(conn, b"before") == b"before"
    talk = Talk(service.path("ue-1"), TARGET)
    talk.start()
    assert wait_until(lambda: len(talk.order) > 200, 20)
    clocks_apart_s = time.time() - time.monotonic()
    done = radio.hand_over("ue-1", "gw-2")
    begin = done.began_unix_s - clocks_apart_s
    assert ask(conn, b"after") == b"after"
    time.sleep(0.4)  # the talk goes on by the new gateway
    talk.finish()
    conn.close()
    assert (done.source, done.target) == ("gw-1", "gw-2")
    assert done.interruption_ms >= INTERRUPTION_MS
    assert talk.lost == []
    answered = sorted(talk.sent[number] + talk.delays_s[number] for number in talk.order)
    silence_s, since = max((late - early, early) for early, late in pairwise(answered))
    assert silence_s >= INTERRUPTION_MS / 1000 - MARGIN_S, "nobody was answered in the interruption"
    assert since >= begin - MARGIN_S
    assert any(since < sent < since + silence_s for sent in talk.sent.values()), "what was sent in it waited"
    assert way_back(service) == mac_of("10.77.0.2"), "answers come straight to the new gateway"


def test_what_the_service_sends_meanwhile_waits_too(
    service: Region, radio: LabRadio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The downlink alone: datagrams to a user who sends nothing. The service learns late where the user is: until then
    the old gateway sends them on."""
    announce = UserLinks._announce

    def announce_late(links: UserLinks, name: str) -> None:
        time.sleep(0.03)
        announce(links, name)

    monkeypatch.setattr(UserLinks, "_announce", announce_late)
    user = netns.call(service.path("ue-1"), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    user.bind((OWN, 5555))
    user.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    user.settimeout(0.5)
    here = netns.call(service.ports["edge-2"].path(SERVICE), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    stop = threading.Event()
    sent = []

    def stream() -> None:
        while not stop.is_set():
            here.sendto(str(len(sent)).encode(), (OWN, 5555))
            sent.append(time.monotonic())
            time.sleep(0.002)

    thread = threading.Thread(target=stream)
    thread.start()
    time.sleep(0.2)
    radio.hand_over("ue-1", "gw-2")
    time.sleep(0.3)
    stop.set()
    thread.join()
    heard = []
    with contextlib.suppress(TimeoutError):
        while True:
            heard.append(int(user.recv(64)))
    user.close()
    here.close()
    assert sorted(heard) == list(range(len(sent)))


def test_packets_in_flight_are_lost_when_told_so_and_connections_survive(service: Region) -> None:
    with LabRadio(service.topology, interruption_ms=2 * INTERRUPTION_MS, in_flight=InFlight.DROP) as radio:
        radio.attach("ue-1", "gw-1")
        conn = connect(service)
        talk = Talk(service.path("ue-1"), TARGET, rate=500)
        talk.start()
        assert wait_until(lambda: len(talk.order) > 50, 20)
        clocks_apart_s = time.time() - time.monotonic()
        threading.Timer(0.15, conn.sendall, (b"sent in the gap",)).start()
        begin = radio.hand_over("ue-1", "gw-2").began_unix_s - clocks_apart_s
        end = time.monotonic()
        assert conn.recv(64) == b"sent in the gap", "TCP sends it again"
        time.sleep(0.3)  # the talk goes on by the new gateway
        talk.finish()
        conn.close()
    lost = [talk.sent[number] for number in talk.lost]
    first, last = min(lost), max(lost)  # when the link goes down, and comes up, a busy machine decides
    assert last - first >= INTERRUPTION_MS / 2000, "a quarter of it, should the talk stand still for a moment"
    inside = [sent for sent in talk.sent.values() if first + MARGIN_S < sent < last - MARGIN_S]
    assert inside
    assert set(inside) <= set(lost)
    assert all(begin - MARGIN_S < sent < end + MARGIN_S for sent in lost)


def test_only_the_serving_gateways_link_passes_anything(service: Region, radio: LabRadio) -> None:
    assert ping(service, OWN, 2.0)
    assert not ping(service, "10.99.1.2")
    radio.hand_over("ue-1", "gw-2")
    assert radio.serving("ue-1") == "gw-2"
    assert ping(service, "10.99.1.2", 2.0)
    assert not ping(service, "10.99.0.2")
    argv = ["ping", "-q", "-c1", "-W0.3", "10.99.0.1"]
    assert netns.call(service.path("ue-1"), lambda: subprocess.run(argv, capture_output=True).returncode) != 0


def test_out_of_coverage_nothing_passes_until_the_user_is_back(service: Region, radio: LabRadio) -> None:
    conn = connect(service)
    radio.detach("ue-1")
    assert not ping(service, OWN)
    assert not ping(service, "10.99.0.2")
    conn.sendall(b"still here")
    radio.attach("ue-1", "gw-2")
    assert conn.recv(64) == b"still here"
    assert ping(service, OWN, 2.0)
    conn.close()


def test_there_and_back_and_at_once_again(service: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announcements of where the user was do not outlast it, however slow they are."""
    send = Announcer.send

    def send_slowly(announcer: Announcer, copies: int = 2) -> None:
        if copies == 1:  # a repeat
            time.sleep(0.02)
        send(announcer, copies)

    monkeypatch.setattr(Announcer, "send", send_slowly)
    conn = None
    with LabRadio(service.topology, interruption_ms=20) as radio:
        radio.attach("ue-1", "gw-1")
        conn = connect(service)
        for number in range(10):
            target = ("gw-2", "gw-1")[number % 2]
            assert radio.hand_over("ue-1", target).target == target
            assert ask(conn, b"%d" % number) == b"%d" % number
            assert way_back(service) == mac_of({"gw-1": "10.77.0.1", "gw-2": "10.77.0.2"}[target])
    conn.close()


def test_the_controller_reaches_the_user_wherever_it_is(service: Region, radio: LabRadio) -> None:
    argv = ["ping", "-q", "-c1", "-W2", OWN]
    for gateway in ("gw-1", "gw-2"):
        radio.attach("ue-1", gateway)
        assert netns.call(service.path("ctl"), lambda: subprocess.run(argv, capture_output=True).returncode) == 0


def test_a_service_that_has_just_arrived_finds_the_user_at_once(service: Region, radio: LabRadio) -> None:
    """What it says while its port is shut, as CRIU has it do, asks for the user's address in vain. The kernel's usual
    next question would come a second later."""
    ports = service.ports["edge-2"]
    user = netns.call(service.path("ue-1"), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    user.bind((OWN, 5555))
    user.settimeout(5)
    here = netns.call(ports.path(SERVICE), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    waits_s = []
    for _ in range(3):
        ports.close(SERVICE)
        netns.call(ports.path(SERVICE), lambda: subprocess.run(["ip", "neigh", "flush", "all"], check=True))
        begin = time.monotonic()
        here.sendto(b"here I am", (OWN, 5555))
        ports.open(SERVICE)
        assert user.recv(64) == b"here I am"
        waits_s.append(time.monotonic() - begin)
    user.close()
    here.close()
    assert min(waits_s) < 0.9


def test_a_second_handover_at_the_same_time_is_refused(
    service: Region, radio: LabRadio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other asks in the middle of the first."""
    refused: list[str] = []
    announce = UserLinks._announce

    def announce_while_another_asks(links: UserLinks, name: str) -> None:
        with LabRadio(service.topology) as other:
            with pytest.raises(Conflict) as refusal:
                other.attach("ue-1", "gw-1")
            refused.append(str(refusal.value))
        announce(links, name)

    monkeypatch.setattr(UserLinks, "_announce", announce_while_another_asks)
    assert radio.hand_over("ue-1", "gw-2").target == "gw-2"
    assert refused
    assert all("under way" in one for one in refused)
    assert radio.serving("ue-1") == "gw-2"


def test_a_handover_that_fails_leaves_the_user_where_it_was(service: Region, radio: LabRadio) -> None:
    conn = connect(service)

    def break_it() -> None:
        with IPRoute() as ip:
            ip.link("set", index=ip.link_lookup(ifname="gw-2")[0], state="down")

    netns.call(service.path("ue-1"), break_it)
    with pytest.raises(StepFailed, match=r"handing ue-1 over to gw-2 failed \(.*\): it is at gw-1"):
        radio.hand_over("ue-1", "gw-2")
    assert radio.serving("ue-1") == "gw-1"
    assert ask(conn, b"still here") == b"still here"
    conn.close()


def test_names_that_mean_nothing_are_refused(service: Region, radio: LabRadio) -> None:
    with pytest.raises(BadInput, match="no user 'ue-9', only ue-1"):
        radio.hand_over("ue-9", "gw-2")
    with pytest.raises(BadInput, match="no link to 'gw-9', only to gw-1, gw-2"):
        radio.hand_over("ue-1", "gw-9")
    with pytest.raises(BadInput, match="is at gw-1 already"):
        radio.hand_over("ue-1", "gw-1")
