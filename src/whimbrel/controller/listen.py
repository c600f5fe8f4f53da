"""Where the controller's API is to be found: apart from its other settings, because every client needs it."""

from __future__ import annotations

import ipaddress

import msgspec

from whimbrel.model.errors import BadInput

DEFAULT_LISTEN = "unix:/run/whimbrel/controller.sock"
MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 with its final zero


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """Where the API listens: a UNIX socket (`path`), or TCP (`host`, `port`) when `path` is empty."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Nobody but this host's users can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_listen(text: str) -> Listen:
    """Read ``unix:PATH`` or ``tcp:HOST:PORT`` (an IPv6 host in brackets). Raises BadInput."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest.startswith("/"):
        if len(rest.encode()) > MAX_SOCKET_PATH_BYTES:
            raise BadInput(f"socket path {rest!r} is longer than {MAX_SOCKET_PATH_BYTES} bytes: choose a shorter one")
        return Listen(path=rest)
    host, _, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if kind == "tcp" and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        return Listen(host=host, port=int(port))
    raise BadInput(f"{text!r} is no controller address: write unix:/PATH or tcp:HOST:PORT")
