"""Round-trip times and address translation, between real namespaces."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from whimbrel.bench.shaped import ADDRESSES, Ends, linked_pair
from whimbrel.model.errors import BadInput, Refused
from whimbrel.model.link import LinkShape
from whimbrel.network import nat, netns
from whimbrel.network.ping import round_trips_ms

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]
DELAY_MS = 10.0
INSIDE = "10.99.0.2"  # an address of a user behind the first end


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    with linked_pair(LinkShape(delay_ms=DELAY_MS)) as made:
        yield made


def test_who_answers_is_timed_and_who_does_not_is_left_out(ends: Ends) -> None:
    silent, unreachable = "198.18.0.77", "192.0.2.1"
    asked = (ends.address, silent, unreachable)
    found = netns.call(Path(ends.source), lambda: round_trips_ms(asked, timeout_s=2.0))
    assert set(found) == {ends.address}
    assert found[ends.address] >= 2 * DELAY_MS


def test_nobody_asked_nobody_found() -> None:
    assert round_trips_ms(()) == {}


@pytest.fixture
def user(ends: Ends) -> Iterator[str]:
    """The user's address on the first end's loopback, with a way back to it from the second."""
    source, destination = Path(ends.source), Path(ends.destination)

    def own(action: str) -> None:
        with IPRoute() as ip:
            ip.addr(action, index=ip.link_lookup(ifname="lo")[0], address=INSIDE, prefixlen=32)

    def way_back(action: str) -> None:
        with IPRoute() as ip:
            ip.route(action, dst=f"{INSIDE}/32", gateway=ADDRESSES[0])

    netns.call(source, lambda: own("add"))
    netns.call(destination, lambda: way_back("add"))
    yield INSIDE
    netns.call(source, lambda: nat.translate(()))
    netns.call(destination, lambda: way_back("del"))
    netns.call(source, lambda: own("del"))


def seen_as(ends: Ends, address: str) -> str:
    """Whom the second end sees when somebody at `address` behind the first sends."""
    with netns.call(Path(ends.destination), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind((ends.address, 0))
        server.settimeout(5)
        with netns.call(Path(ends.source), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
            client.bind((address, 0))
            client.settimeout(5)
            client.sendto(b"who am I", server.getsockname())
            _, peer = server.recvfrom(64)
            server.sendto(b"you", peer)
            assert client.recv(64) == b"you", "the answer finds its way back"
    return str(peer[0])


def test_users_appear_with_the_gateways_address_as_long_as_they_are_to(ends: Ends, user: str) -> None:
    source = Path(ends.source)
    assert seen_as(ends, user) == user
    netns.call(source, lambda: nat.translate(["10.99.0.0/24"]))
    assert seen_as(ends, user) == ADDRESSES[0]
    netns.call(source, lambda: nat.translate(["10.99.0.0/24"]))  # an agent that comes back
    rules = netns.call(source, lambda: subprocess.check_output(["nft", "list", "ruleset"], text=True))
    assert rules.count("masquerade") == 1
    netns.call(source, lambda: nat.translate(["10.98.0.0/24"]))
    assert seen_as(ends, user) == user, "another subnet's users are translated now"
    netns.call(source, lambda: nat.translate(()))
    assert not netns.call(source, lambda: subprocess.check_output(["nft", "list", "ruleset"], text=True)).strip()


def test_what_cannot_be_translated_is_told(ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("10.99.0.1", "users"):
        with pytest.raises(BadInput, match=wrong):
            nat.translate([wrong])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="address translation needs nft"):
        netns.call(Path(ends.source), lambda: nat.translate(["10.99.0.0/24"]))
    netns.call(Path(ends.source), lambda: nat.translate(()))  # nothing to translate: no tool is needed
