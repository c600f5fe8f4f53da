"""What an engine must be able to do so that its containers can move."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from whimbrel.model.errors import Refused
from whimbrel.model.service import ExecResult
from whimbrel.runtime.moving import Departure, Landing
from whimbrel.runtime.runc import process_start_ticks


class EngineAway(Refused):
    """The engine is not installed, or does not run."""


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A running container of an engine: its id there, its first process (`start_ticks` tells it from a later one)
    and its control group."""

    container: str
    pid: int
    start_ticks: int
    cgroup: str
    image: str = ""
    image_digest: str = ""

    @property
    def alive(self) -> bool:
        return process_start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True)
class Arrival:
    """A container that waits to be filled. `netns_pid`: a process whose network namespace it will live in, 0 when one
    has to be made. `connection`: whoever becomes the restoring CRIU is at its other end."""

    container: str
    landing: Landing
    connection: socket.socket
    netns_pid: int = 0


class Engine(Protocol):
    """One engine of one node. `clones` is a folder for mounts that are shown outside of the container meanwhile."""

    async def answers(self) -> None:
        """Whether it is there at all. Raises EngineAway."""

    async def look(self, container: str) -> Guest:
        """Find a running container by name or id. Raises BadInput, Refused when it could never move."""

    async def leave(self, guest: Guest, clones: Path) -> Departure:
        """What of it crosses. Raises Refused when it cannot move as it is now."""

    async def offer(self, description: bytes) -> None:
        """May the container that another node describes so come? Raises Refused."""

    async def has_image(self, description: bytes) -> bool:
        """Whether that container's image is there; also when there is none to it."""

    def image_out(self, description: bytes) -> AsyncIterator[bytes]:
        """The container's image as an archive. Raises Refused."""

    async def image_in(self, description: bytes, pieces: AsyncIterator[bytes]) -> None:
        """Take it in; afterwards it is there. Raises Refused."""

    async def prepare(self, description: bytes, clones: Path, made: Callable[[str], None]) -> Arrival:
        """Make the container (`made` is told its id at once), and start it as far as it comes without its processes.
        Undone by `remove`. Raises Refused."""

    async def settled(self, container: str) -> Guest:
        """After the restore: wait until the engine takes the container for running."""

    async def end(self, container: str) -> bytes:
        """Before its frozen processes are killed: it shall not be started again. Returns its output so far."""

    async def remove(self, container: str, *, with_volumes: bool) -> None:
        """Delete the container, running or not; one that is gone is no error."""

    async def exec(self, container: str, argv: tuple[str, ...]) -> ExecResult: ...

    async def output(self, container: str, tail_bytes: int) -> bytes:
        """The last of what it wrote, as far as the engine keeps it."""


def has_own_cgroupns(pid: int) -> bool:
    """Whether a process sees its control group as the root of all."""
    return os.stat(f"/proc/{pid}/ns/cgroup").st_ino != os.stat("/proc/self/ns/cgroup").st_ino


def cgroup_of(pid: int) -> str:
    """The control group of a process, the same path on every hierarchy. Raises Refused when it is not."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError as error:
        raise Refused(f"process {pid} of the container is gone: is it running?") from error
    paths = {line.split(":", 2)[2] for line in lines} - {"/"}
    if len(paths) != 1:
        raise Refused(
            f"process {pid} of the container is in {len(paths)} different control groups "
            f"({', '.join(sorted(paths)) or 'none of its own'}): let its engine make one for it"
        )
    return paths.pop()
