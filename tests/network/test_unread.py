"""Datagrams that a program has not read: seen where it is, given to its sockets where it goes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from whimbrel.network import netns
from whimbrel.network.unread import SO_PEEK_OFF, Datagram, deliver, unread

pytestmark = pytest.mark.real
HERE, PORT = "10.9.9.1", 4000
SENDER = ("192.0.2.7", 5353)  # nobody has it: it came from elsewhere


def _furnish() -> None:
    with IPRoute() as ip:
        (lo,) = ip.link_lookup(ifname="lo")
        ip.link("set", index=lo, state="up")
        ip.addr("add", index=lo, address=HERE, prefixlen=32)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A network namespace whose own address is `HERE`."""
    path = tmp_path / "place"
    netns.create(path)
    try:
        netns.call(path, _furnish)
        yield path
    finally:
        netns.remove(path)


def _bound(place: Path, host: str, family: int = socket.AF_INET) -> socket.socket:
    sock = netns.call(place, lambda: socket.socket(family, socket.SOCK_DGRAM))
    sock.bind((host, PORT))
    sock.settimeout(5)
    return sock


@contextmanager
def _owner(place: Path, *sockets: socket.socket) -> Iterator[list[int]]:
    """The process, in there, that has them."""
    fds = [sock.fileno() for sock in sockets]
    with netns.call(place, lambda: subprocess.Popen(["sleep", "60"], pass_fds=fds)) as child:
        try:
            yield [child.pid]
        finally:
            child.kill()


def _sent(*payloads: bytes, host: str = HERE, source: tuple[str, int] = SENDER) -> list[Datagram]:
    return [Datagram(source, (host, PORT), payload) for payload in payloads]


def test_the_sender_and_the_order_are_what_they_were(place: Path) -> None:
    datagrams = _sent(*(b"%d" % number for number in range(1500)))
    with _bound(place, "") as sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        assert deliver(place, datagrams) == 1500
        assert [sock.recvfrom(64) for _ in datagrams] == [(datagram.payload, SENDER) for datagram in datagrams]


@pytest.mark.parametrize(
    ("host", "family"),
    [("", socket.AF_INET), (HERE, socket.AF_INET), ("::", socket.AF_INET6)],
    ids=["any address", "its own address", "any address of IPv6 too"],
)
def test_what_waits_is_seen_and_stays(place: Path, host: str, family: int) -> None:
    datagrams = _sent(b"one", b"x" * 40_000, b"three")
    with _bound(place, host, family) as sock, _owner(place, sock) as pids:
        deliver(place, datagrams)
        assert unread(pids) == datagrams
        assert unread(pids) == datagrams, "it stays"
        assert [sock.recv(65535) for _ in datagrams] == [datagram.payload for datagram in datagrams]
        assert unread(pids) == []


def test_the_sockets_options_are_as_before(place: Path) -> None:
    with _bound(place, "") as sock, _owner(place, sock) as pids:
        deliver(place, _sent(b"one", b"two"))
        assert len(unread(pids)) == 2
        assert sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == -1
        assert sock.recv(64, socket.MSG_PEEK) == b"one"
        _, ancillary, _, _ = sock.recvmsg(64, 256)
        assert ancillary == []


def test_what_a_program_asks_to_be_told_besides_does_not_hide_the_destination(place: Path) -> None:
    with _bound(place, "") as sock, _owner(place, sock) as pids:
        for asked_for in (35, 40):  # SO_TIMESTAMPNS, SO_RXQ_OVFL
            sock.setsockopt(socket.SOL_SOCKET, asked_for, 1)
        deliver(place, _sent(b"one"))
        assert unread(pids) == _sent(b"one")


def test_only_who_it_came_from_is_heard_by_a_connected_socket(place: Path) -> None:
    with _bound(place, "") as sock, _owner(place, sock) as pids:
        sock.connect(("127.0.0.1", 9))  # and its own address with it
        assert deliver(place, _sent(b"of a stranger", host="127.0.0.1")) == 1
        deliver(place, _sent(b"of its peer", host="127.0.0.1", source=("127.0.0.1", 9)))
        assert unread(pids) == _sent(b"of its peer", host="127.0.0.1", source=("127.0.0.1", 9))
        assert sock.recv(64) == b"of its peer"


def test_what_came_after_an_answer_that_nobody_listens_is_seen_too(place: Path) -> None:
    with _bound(place, "") as sock, _owner(place, sock) as pids:
        sock.connect(("127.0.0.1", 9))
        sock.send(b"nobody is there")
        deliver(place, _sent(b"one", host="127.0.0.1", source=("127.0.0.1", 9)))
        assert [datagram.payload for datagram in unread(pids)] == [b"one"]


def test_all_sockets_of_all_processes_are_looked_at_once(place: Path) -> None:
    with ExitStack() as open_ones:
        first = open_ones.enter_context(_bound(place, HERE))
        again = open_ones.enter_context(socket.fromfd(first.fileno(), socket.AF_INET, socket.SOCK_DGRAM))
        second = open_ones.enter_context(_bound(place, "127.0.0.1"))
        pids = [
            *open_ones.enter_context(_owner(place, first, again)),
            *open_ones.enter_context(_owner(place, first, second)),
        ]
        datagrams = [*_sent(b"one"), *_sent(b"two", host="127.0.0.1")]
        deliver(place, datagrams)
        assert sorted(unread(pids), key=lambda datagram: datagram.payload) == datagrams
        assert (first.recv(64), second.recv(64)) == (b"one", b"two")


@pytest.mark.parametrize("host", ["10.9.9.2", "224.0.0.1", "255.255.255.255"])
def test_what_is_for_nobody_here_goes_nowhere(place: Path, host: str) -> None:
    with _bound(place, "") as sock:
        assert deliver(place, [*_sent(b"elsewhere", host=host), *_sent(b"here")]) == 1
        assert sock.recv(64) == b"here"


def test_processes_that_are_gone_have_nothing(place: Path) -> None:
    assert unread([1 << 22]) == []
