"""Where the controller may send what a stranger asked it to send: a subscriber names the address of its notifications,
and the controller may stand where the subscriber cannot reach. So only what the operator named is connected to.

The rule is applied to the address that a name resolved to, at the moment of connecting, and that very address is
connected to: a name that resolves otherwise later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

import httpcore
import msgspec

from whimbrel.model.errors import BadInput, Refused

MOST_URL = 2048
LOOPBACK = ("127.0.0.0/8", "::1/128")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """`networks`: any name and port whose address lies there. `places`: these names (lower case) at these ports,
    wherever they resolve to: the operator vouches for them."""

    networks: tuple[IPNetwork, ...] = ()
    places: frozenset[tuple[str, int]] = frozenset()

    def has_address(self, address: str) -> bool:
        plain = _plain(address)
        return any(plain in network for network in self.networks if network.version == plain.version)

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


def check_url(url: str, allowed: Allowed) -> None:
    """What can be said before a name is resolved. Raises BadInput (no URL to post to), Refused (not allowed)."""
    if len(url) > MOST_URL:
        raise BadInput(f"a callback address of {len(url)} characters is too long: use at most {MOST_URL}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise BadInput(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host or any(letter <= " " for letter in url):
        raise BadInput(f"{url!r} is no place to send notifications to: write http://HOST:PORT/PATH")
    if parts.username is not None or parts.password is not None:
        raise BadInput("a callback address with a user's name in it is not taken: leave it out")
    if allowed.has_place(host, port):
        return
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        if allowed.networks:
            return  # a name: what it resolves to counts, when it is connected to
    else:
        if allowed.has_address(str(literal)):
            return
    raise Refused(
        f"notifications to {host}:{port} are not allowed here (allowed: {allowed}): "
        "the operator may name it in `[mec] callbacks`"
    )


class Guard(httpcore.AsyncNetworkBackend):
    """Connects to allowed addresses, and to nothing else. Raises httpcore.ConnectError for others."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        address = await resolved(host, port, self._allowed)
        return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("notifications go to no UNIX socket")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def resolved(host: str, port: int, allowed: Allowed) -> str:
    """The first address of the name that may be connected to. Raises httpcore.ConnectError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(f"{host} is not found: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if allowed.has_place(host, port) or allowed.has_address(address):
            return address
    raise httpcore.ConnectError(f"{host} is {', '.join(addresses)}, where notifications are not allowed to go")


def _plain(address: str) -> IPAddress:
    """An IPv4 address that is written as one of IPv6 is what it is."""
    plain = ipaddress.ip_address(address.partition("%")[0])
    mapped = plain.ipv4_mapped if isinstance(plain, ipaddress.IPv6Address) else None
    return mapped or plain
