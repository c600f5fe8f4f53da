"""Join two namespaces by a link of a given shape, or give a link that is there another rate."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pyroute2 import IPRoute

from whimbrel.model.errors import Refused
from whimbrel.model.link import LinkShape
from whimbrel.network import netns
from whimbrel.network.overlay import explained
from whimbrel.network.shaping import relay
from whimbrel.network.shaping.rate import has_netem, set_rate
from whimbrel.network.shaping.tap import open_tap

DelayBy = Literal["netem", "relay"]
_WAY_OUT = "run as root, see `whimbrel check`"


@dataclass(frozen=True)
class End:
    """One end of a link: a namespace's file, and what the interface is called in there."""

    namespace: Path
    ifname: str


@dataclass(frozen=True)
class Relay:
    """A relay to be started: `argv`, with `fds` passed on (and closed by whoever started it). Until then the link
    carries nothing, and without it never."""

    argv: tuple[str, ...]
    fds: tuple[int, int]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@cache
def delay_by() -> DelayBy:
    """How delay is made on this machine. Raises Refused without root."""
    return "netem" if has_netem() else "relay"


def connect(a: End, b: End, shape: LinkShape, *, by: DelayBy | None = None) -> Relay | None:
    """Make both interfaces, down and without address. Returns the relay to be started if the link needs one.

    `by`: how to delay, what works here if not said. Raises Refused."""
    with explained(f"making a link between {a.namespace.name} and {b.namespace.name}", _WAY_OUT):
        if shape.delay_ms and (by or delay_by()) == "relay":
            made = _tap_pair(a, b, shape)
        else:
            made = None
            _veth_pair(a, b)
        for end in (a, b):
            _reshape(end, shape, netem=made is None and shape.delay_ms > 0)
    return made


def reshape(end: End, shape: LinkShape) -> None:
    """Another rate for what leaves by this end; its delay stays what it was made with. Raises Refused."""
    with explained(f"setting the rate of {end.ifname}", "the kernel needs the queueing discipline TBF (sch_tbf)"):
        _reshape(end, shape, netem=False)


def _reshape(end: End, shape: LinkShape, *, netem: bool) -> None:
    netns.call(end.namespace, lambda: set_rate(end.ifname, shape, netem=netem))


def _veth_pair(a: End, b: End) -> None:
    """Made right inside both namespaces: the host's own never sees it."""
    with b.namespace.open() as there:

        def make() -> None:
            with IPRoute() as ip:
                ip.link("add", ifname=a.ifname, kind="veth", peer={"ifname": b.ifname, "net_ns_fd": there.fileno()})

        netns.call(a.namespace, make)


def _tap_pair(a: End, b: End, shape: LinkShape) -> Relay:
    if not Path("/dev/net/tun").exists():
        raise Refused("a link with delay needs /dev/net/tun, or a kernel with netem: load the module tun")
    delay = f"{shape.delay_ms:g}"
    # As a plain file: it imports none of ours, and is up in a moment.
    interpreter = (sys.executable, "-I", "-S", relay.__file__)
    first = netns.call(a.namespace, lambda: open_tap(a.ifname))
    try:
        second = netns.call(b.namespace, lambda: open_tap(b.ifname))
    except BaseException:
        os.close(first)
        raise
    return Relay((*interpreter, str(first), str(second), delay, delay), (first, second))
