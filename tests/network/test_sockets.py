"""Sockets on addresses that stay behind are found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from whimbrel.network import netns
from whimbrel.network.sockets import foreign_address

pytestmark = pytest.mark.real
OWN, FOREIGN = "10.77.3.4", "172.31.0.5"
LISTEN = """
import socket, sys
held = []
for word in sys.argv[1:]:
    kind, address = word.split("@")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    held.append(socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM))
    held[-1].bind((address, 0))
    if kind == "tcp":
        held[-1].listen()
print("ready", flush=True)
sys.stdin.read()
"""


def _addresses() -> None:
    with IPRoute() as ip:
        index = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=index, state="up")
        for address in (OWN, FOREIGN):
            ip.addr("add", index=index, address=address, prefixlen=32)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "netns"
    netns.create(path)
    netns.call(path, _addresses)
    yield path
    netns.remove(path)


@pytest.mark.parametrize(
    ("sockets", "found"),
    [
        (["tcp@0.0.0.0", "udp@0.0.0.0", "tcp@127.0.0.1", f"tcp@{OWN}", f"udp@{OWN}"], None),
        (["tcp@::", "tcp@::1", f"tcp@::ffff:{OWN}"], None),
        ([f"tcp@{FOREIGN}"], f"has a TCP socket on {FOREIGN}"),
        ([f"udp@{FOREIGN}"], f"has a UDP socket on {FOREIGN}"),
        (["tcp@::", f"tcp@::ffff:{FOREIGN}"], f"has a TCP socket on {FOREIGN}"),
    ],
)
def test_only_addresses_that_stay_behind_matter(place: Path, sockets: list[str], found: str | None) -> None:
    argv = [sys.executable, "-c", LISTEN, *sockets]
    process = netns.call(place, lambda: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert foreign_address(process.pid, OWN) == found
