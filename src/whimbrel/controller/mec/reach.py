"""Where the controller may send what a stranger asked it to send: a subscriber names the address of its notifications,
and the controller may stand where the subscriber cannot reach. So only what the operator named is connected to.

A name is resolved when it is subscribed with, so that the subscriber learns at once that it leads nowhere; what counts
is the address that it resolves to at the moment of connecting, and that very address is connected to: a name that
resolves otherwise later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpcore
import msgspec

from whimbrel.model.errors import BadInput, Refused

MOST_URL = 2048
RESOLVE_S = 3.0
"""A name that takes longer is as good as none."""
ASKED = ThreadPoolExecutor(4, "resolve a name asked for")
SENT_TO = ThreadPoolExecutor(32, "resolve a name sent to")
"""Names that nobody answers for hold threads up for long: not those that the database needs, nor each other's."""
LOOPBACK = ("127.0.0.0/8", "::1/128")

HOST = re.compile(r"[a-z0-9_.:-]+")
"""Names and addresses, in lower case."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """`networks`: any name and port whose address lies there. `places`: these names (lower case) at these ports,
    wherever they resolve to: the operator vouches for them."""

    networks: tuple[IPNetwork, ...] = ()
    places: frozenset[tuple[str, int]] = frozenset()

    def has_address(self, address: str) -> bool:
        meant = plain(address)
        return any(meant in network for network in self.networks if network.version == meant.version)

    def has_place(self, host: str, port: int) -> bool:
        return (host.lower(), port) in self.places

    def __str__(self) -> str:
        named = [*(str(one) for one in self.networks), *(f"{host}:{port}" for host, port in sorted(self.places))]
        return ", ".join(named) or "nothing"


def allowed_of(said: Iterable[str] | None, *, local: bool) -> Allowed:
    """From the configuration. Where nothing is said, a controller that only this host reaches may reach this host, and
    any other nobody. Raises BadInput."""
    if said is None:
        said = LOOPBACK if local else ()
    networks, places = [], set()
    for text in said:
        try:
            networks.append(ipaddress.ip_network(text))
            continue
        except ValueError:
            host, _, port = text.rpartition(":")
        if not host or "/" in text or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise BadInput(f"[mec] callbacks: {text!r} is neither a network like 10.0.0.0/8 nor a place like host:port")
        places.add((host.removeprefix("[").removesuffix("]").lower(), int(port)))
    return Allowed(networks=tuple(networks), places=frozenset(places))


def place_of(url: str) -> tuple[str, int]:
    """Host (lower case, without brackets) and port. Raises ValueError."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def check_url(url: str, allowed: Allowed) -> bool:
    """What can be said before a name is resolved: whether it has to be. Raises BadInput (no URL to post to), Refused
    (not allowed)."""
    if len(url) > MOST_URL:
        raise BadInput(f"a callback address of {len(url)} characters is too long: use at most {MOST_URL}")
    try:
        parts = urlsplit(url)
        host, port = place_of(url)
    except ValueError as error:
        raise BadInput(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host or any(letter <= " " for letter in url):
        raise BadInput(f"{url!r} is no place to send notifications to: write http://HOST:PORT/PATH")
    # Letters that only look like others, escapes and scopes: whoever reads them may read another host.
    if not url.isascii() or not HOST.fullmatch(host):
        raise BadInput(
            f"the host of {url!r} is not written plainly: use letters, digits, '.', '-' and '_' (of other names the "
            "form that begins with xn--), or an address"
        )
    if parts.username is not None or parts.password is not None:
        raise BadInput("a callback address with a user's name in it is not taken: leave it out")
    if allowed.has_place(host, port):
        return False
    if not is_address(host):
        if allowed.networks:
            return True
    elif allowed.has_address(host):
        return False
    raise _refused(host, port, allowed)


async def check_callback(url: str, allowed: Allowed) -> None:
    """The same, and where its name leads now; for some seconds at most. Raises BadInput, Refused."""
    if not check_url(url, allowed):
        return
    host, port = place_of(url)
    try:
        async with asyncio.timeout(RESOLVE_S):
            await resolved(host, port, allowed, ASKED)
    except TimeoutError:
        raise Refused(f"nobody said within {RESOLVE_S:g} s where {host} is: subscribe again when it is known") from None
    except httpcore.ConnectError as error:
        raise _refused(host, port, allowed, f": {error}") from None


def _refused(host: str, port: int, allowed: Allowed, why: str = "") -> Refused:
    return Refused(
        f"notifications to {host}:{port} are not allowed here{why} (allowed: {allowed}): "
        "the operator may name it in `[mec] callbacks`"
    )


def is_address(host: str) -> bool:
    """Whether it is no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class To(httpcore.AsyncNetworkBackend):
    """Connects to one address, whatever host is asked for."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return await self._backend.connect_tcp(self._address, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("notifications go to no UNIX socket")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def resolved(host: str, port: int, allowed: Allowed, threads: ThreadPoolExecutor = SENT_TO) -> str:
    """The first address of the name that may be connected to. Raises httpcore.ConnectError."""
    addresses = [host]
    if not is_address(host):
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # the latter: a label is empty, or too long
            raise httpcore.ConnectError(f"{host} is not found: {error}") from error
        addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if allowed.has_place(host, port) or allowed.has_address(address):
            return address
    raise httpcore.ConnectError(f"{host} is {', '.join(addresses)}, where notifications are not allowed to go")


def plain(address: str) -> IPAddress:
    """An IPv4 address that is written as one of IPv6 is what it is."""
    meant = ipaddress.ip_address(address.partition("%")[0])
    mapped = meant.ipv4_mapped if isinstance(meant, ipaddress.IPv6Address) else None
    return mapped or meant
