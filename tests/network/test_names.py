import socket

import pytest

from whimbrel.model.errors import BadInput
from whimbrel.network.announce import arp_frames
from whimbrel.network.names import interface, mac_bytes, mac_of, port_name


def test_the_ethernet_address_follows_from_the_overlay_address() -> None:
    assert mac_of("10.77.1.1/16") == mac_of("10.77.1.1") == "02:77:0a:4d:01:01"
    assert mac_bytes("02:77:0a:4d:01:01")[0] & 3 == 2, "locally administered, not a group"


def test_port_names_fit_an_interface_name() -> None:
    names = {port_name(f"service-with-a-rather-long-name-{n}") for n in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 10 for name in names)


@pytest.mark.parametrize("text", ["10.77.1", "10.77.1.1/33", "fe80::1/64", "", "edge-1"])
def test_a_wrong_address_is_named(text: str) -> None:
    with pytest.raises(BadInput, match=r"write it like 10\.77\.1\.1/16"):
        interface(text)


@pytest.mark.parametrize("mac", ["", "02:77", "zz:77:0a:4d:01:01", "02:77:0a:4d:01:01:01"])
def test_a_wrong_ethernet_address_is_named(mac: str) -> None:
    with pytest.raises(BadInput, match="not an Ethernet address"):
        mac_bytes(mac)


def test_an_announcement_is_gratuitous_in_both_forms() -> None:
    request, reply = arp_frames("10.77.1.1/16", "02:77:0a:4d:01:01")
    for frame, operation in ((request, 1), (reply, 2)):
        assert frame[:6] == b"\xff" * 6
        assert frame[6:12] == frame[22:28] == mac_bytes("02:77:0a:4d:01:01")
        assert frame[12:14] == b"\x08\x06"
        assert frame[20:22] == bytes([0, operation])
        assert frame[28:32] == frame[38:42] == socket.inet_aton("10.77.1.1"), "sender and target are the same"
        assert len(frame) == 42
