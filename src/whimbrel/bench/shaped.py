"""Two network namespaces with one link of a given rate and delay between them, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyroute2 import IPRoute

from whimbrel.bench.companion import interruptible
from whimbrel.model.errors import Refused
from whimbrel.model.link import LinkShape
from whimbrel.network import netns
from whimbrel.network.netlink import NUD_PERMANENT
from whimbrel.network.overlay import explained, wait_until
from whimbrel.network.shaping import End, Relay, connect
from whimbrel.network.shaping.rate import burst_bytes

ADDRESSES = ("198.18.0.1", "198.18.0.2")  # for benchmarks, RFC 2544
LINK = "link0"
QUEUE_MS = 20.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Ends:
    """Paths of the two namespaces, and the address of the second. `relay`: process id of the link's relay, if any."""

    source: str
    destination: str
    address: str
    relay: int = 0


@contextmanager
def shaped_pair(rate_bps: float) -> Iterator[Ends]:
    """What the first sends to the second crosses at `rate_bps` (0: as fast as it goes), through a queue of `QUEUE_MS`
    and what passes at once. Raises Refused without root."""
    queue_bytes = burst_bytes(rate_bps) + int(rate_bps / 8 * QUEUE_MS / 1e3)
    with linked_pair(LinkShape(rate_bps=rate_bps, queue_bytes=queue_bytes)) as ends:
        yield ends


@contextmanager
def linked_pair(shape: LinkShape) -> Iterator[Ends]:
    """A link of this shape, both ways. Raises Refused without root."""
    number = next(_numbers)
    paths = [Path(f"/run/netns/whimbrel-bench-{os.getpid()}-{number}{end}") for end in ("a", "b")]
    with ExitStack() as undo:
        undo.enter_context(interruptible())
        for path in paths:
            netns.create(path)
            undo.callback(netns.remove, path)
        ends = (End(paths[0], LINK), End(paths[1], LINK))
        relay = connect(*ends, shape)
        pid = undo.enter_context(_running(relay)) if relay is not None else 0
        with explained("making a link to measure on", "run as root, see `whimbrel check`"):
            macs = [netns.call(path, _mac) for path in paths]
            for path, own, other, mac in zip(paths, ADDRESSES, ADDRESSES[::-1], macs[::-1], strict=True):
                netns.call(path, partial(_bring_up, own, other, mac))
        for path in paths:
            netns.call(path, _wait_for_link)
        yield Ends(str(paths[0]), str(paths[1]), ADDRESSES[1], pid)


@contextmanager
def _running(relay: Relay) -> Iterator[int]:
    with contextlib.closing(relay):
        process = subprocess.Popen(relay.argv, pass_fds=relay.fds, stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _mac() -> str:
    with IPRoute() as ip:
        return str(ip.get_links(ip.link_lookup(ifname=LINK)[0])[0].get_attr("IFLA_ADDRESS"))


def _bring_up(own: str, other: str, mac: str) -> None:
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=LINK)[0]
        ip.addr("add", index=index, address=own, prefixlen=24)
        ip.link("set", index=index, state="up")
        # known ahead: on a slow link the first packets would wait for the question, and some be lost
        ip.neigh("replace", ifindex=index, dst=other, lladdr=mac, state=NUD_PERMANENT)


def _wait_for_link() -> None:
    def up() -> bool:
        with IPRoute() as ip:
            state = ip.get_links(ip.link_lookup(ifname=LINK)[0])[0].get_attr("IFLA_OPERSTATE")
            return state in ("UP", "UNKNOWN")  # a TAP says no more than that

    if not wait_until(up, timeout_s=3.0):
        raise Refused(f"the link {LINK} of {socket.gethostname()} does not come up: try again")
