"""What the bench tests share: names, addresses, and what a fixture gives."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

USER_ADDRESS = "10.78.9.9"
NODES = ("n-1", "n-2", "n-3")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Net:
    """`user` and `nodes` are names for `ip netns`; node i (from 1) has 10.78.0.i, the user `USER_ADDRESS`."""

    user: str
    nodes: tuple[str, ...]

    def prefix(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", name)

    def path(self, name: str) -> Path:
        return Path("/run/netns", name)


@dataclass(frozen=True)
class Running:
    """The demo service as a plain process."""

    pid: int
    host: str
    memory_mb: int
