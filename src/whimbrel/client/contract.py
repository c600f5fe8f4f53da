"""What a workload's `client.py` brings: a function ``user(place)`` that returns a `User`. Standard library only.

The framework does the measuring: one request at a time on one TCP connection (`Talk`), numbered UDP datagrams when
the service echoes them, and whatever else the user does meanwhile (`Side`), each in a process of its own. Times are
nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Keys of figures that are added up over all parts of a client; "ok" is anded. What else there is becomes detail.
COUNTS = ("requests", "answered", "lost", "resets", "stalls")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where the service is and what it was told. `data` is the folder with the client's files, as the image's
    build left them (None: there is none); `timeout_s` is how long an answer is waited for."""

    host: str
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    timeout_s: float = 20.0

    @property
    def target(self) -> tuple[str, int]:
        return self.host, self.port

    def file(self, name: str) -> Path:
        """A file of the client's data. Raises FileNotFoundError with the way out."""
        if self.data is None or not (self.data / name).is_file():
            raise FileNotFoundError(f"the client needs {name}, made with the image: run `whimbrel workload build` here")
        return self.data / name

    def connect(self) -> socket.socket:
        """A plain connection with time-outs, for what is not measured. Raises OSError."""
        conn = socket.create_connection(self.target, timeout=self.timeout_s)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return conn


class Talk:
    """The measured TCP connection: one request at a time, at most `rate` per second."""

    rate = 1000.0
    processing_ns = 0  # of the last request, where the service tells how long it worked on it

    def greet(self, conn: socket.socket) -> None:
        """Called with each new connection, not measured. OSError: it is of no use."""

    def ask(self, conn: socket.socket, number: int) -> int:
        """One request; returns when its answer came. OSError: the connection broke. ValueError: a wrong answer."""
        raise NotImplementedError

    def broken(self) -> None:
        """The connection broke with a request under way, which the service may or may not have carried out."""

    def figures(self, conn: socket.socket | None, from_ns: int, to_ns: int) -> Figures:
        """More than the framework knows of the requests sent in [from, to); may ask the service for its state."""
        return {}


class Side:
    """Something else that the user does meanwhile."""

    name = "side"

    def step(self) -> None:
        """Do a little and return within some 50 ms. Handles its own broken connections."""
        raise NotImplementedError

    def figures(self, from_ns: int, to_ns: int) -> Figures:
        """What it saw in [from, to), and whether all is as it must be (``"ok"``)."""
        raise NotImplementedError


class User:
    """One workload's user. The methods are called in the process that controls the others."""

    udp = False

    def __init__(self, place: Place) -> None:
        self.place = place

    def prepare(self) -> None:
        """Before anything is measured, once the service answers. OSError: it is not ready."""

    def talk(self) -> Talk:
        raise NotImplementedError

    def sides(self) -> Sequence[Side]:
        return ()

    def check(self) -> Figures:
        """After a window: is the service's state what it must be? OSError and ValueError mean no."""
        return {}
