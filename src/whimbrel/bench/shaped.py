"""Two network namespaces with one link of a given rate between them, for as long as a measurement takes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from whimbrel.model.errors import Refused
from whimbrel.network import netns
from whimbrel.network.overlay import explained, wait_until

ADDRESSES = ("198.18.0.1", "198.18.0.2")  # for benchmarks, RFC 2544
LINK = "link0"
QUEUE_MS = 20.0
BURST_MS = 1.0
LEAST_BURST_BYTES = 1 << 17  # a packet as the kernel hands it to a link that segments: 64 KiB, and room for the next


@dataclass(frozen=True)
class Ends:
    """Paths of the two namespaces, and the address of the second."""

    source: str
    destination: str
    address: str


@contextmanager
def shaped_pair(rate_bps: float) -> Iterator[Ends]:
    """What the first sends to the second crosses at `rate_bps` (0: as fast as it goes). Raises Refused without root."""
    paths = [Path(f"/run/netns/whimbrel-bench-{os.getpid()}-{end}") for end in ("a", "b")]
    made: list[Path] = []
    try:
        for path in paths:
            netns.create(path)
            made.append(path)
        with explained("making a link to measure on", "run as root, see `whimbrel check`"):
            with paths[1].open() as other:
                netns.call(paths[0], lambda: _join(other.fileno()))
            for path, address in zip(paths, ADDRESSES, strict=True):
                netns.call(path, lambda address=address: _bring_up(address))  # type: ignore[misc]
            if rate_bps:
                netns.call(paths[0], lambda: _shape(rate_bps))
            for path in paths:
                netns.call(path, _wait_for_link)
        yield Ends(str(paths[0]), str(paths[1]), ADDRESSES[1])
    finally:
        for path in made:
            netns.remove(path)


def _join(other: int) -> None:
    with IPRoute() as ip:
        ip.link("add", ifname=LINK, kind="veth", peer={"ifname": LINK, "net_ns_fd": other})


def _bring_up(address: str) -> None:
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=LINK)[0]
        ip.addr("add", index=index, address=address, prefixlen=24)
        ip.link("set", index=index, state="up")


def _shape(rate_bps: float) -> None:
    """A token bucket; its queue holds `QUEUE_MS` of traffic."""
    bytes_per_s = rate_bps / 8
    burst = max(LEAST_BURST_BYTES, int(bytes_per_s * BURST_MS / 1e3))
    with IPRoute() as ip:
        ip.tc(
            "add",
            "tbf",
            index=ip.link_lookup(ifname=LINK)[0],
            handle="1:",
            rate=int(bytes_per_s),
            burst=burst,
            limit=burst + int(bytes_per_s * QUEUE_MS / 1e3),
        )


def _wait_for_link() -> None:
    def up() -> bool:
        with IPRoute() as ip:
            return bool(ip.get_links(ip.link_lookup(ifname=LINK)[0])[0].get_attr("IFLA_OPERSTATE") == "UP")

    if not wait_until(up, timeout_s=3.0):
        raise Refused(f"the link {LINK} of {socket.gethostname()} does not come up: try again")
