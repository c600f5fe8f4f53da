"""A container's output: an anonymous pipe into a detached process that appends to a file.

CRIU cannot carry an open host file, but it can reconnect a pipe; and the container must be able to write
while the agent is down, so the reader is its own tiny process (`cat`), which ends when the last writer does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import time
from pathlib import Path

import msgspec

from whimbrel.model.errors import BadInput, WhimbrelError

_SEGMENT = re.compile(r"[0-9]{1,20}-[a-z0-9-]{1,64}\.log")


def open_log(logs: Path, node: str, *, now_ns: int | None = None) -> int:
    """Start a logger for a new segment ``<start unix ns>-<node>.log``; returns the pipe's write end.

    The caller closes the descriptor once the container holds its own copy. Raises WhimbrelError when the
    folder or the program is missing.
    """
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    segment = logs / f"{now_ns if now_ns is not None else time.time_ns()}-{node}.log"
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        with segment.open("ab") as target:
            fcntl.flock(target, fcntl.LOCK_EX)  # held by the logger until it ends, see `settle`
            # --fork: the logger is init's child, not ours, so that it outlives the agent and leaves no zombie
            subprocess.run(
                ["setsid", "--fork", "cat"],
                stdin=read_end,
                stdout=target,
                stderr=subprocess.DEVNULL,
                cwd="/",
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        os.close(write_end)
        raise WhimbrelError(f"cannot start the logger for {segment}: {error}") from error
    finally:
        os.close(read_end)
    return write_end


def tail(logs: Path, tail_bytes: int) -> bytes:
    """The last `tail_bytes` of all segments in the order in which they began; empty when there are none."""
    parts: list[bytes] = []
    missing = tail_bytes
    for segment in sorted(segments(logs), key=_start_ns, reverse=True):
        if missing <= 0:
            break
        with segment.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - missing))
            parts.append(file.read(missing))
        missing -= len(parts[-1])
    return b"".join(reversed(parts))


def segments(logs: Path) -> list[Path]:
    """All segment files of a service, oldest first."""
    if not logs.is_dir():
        return []
    found = (entry for entry in logs.iterdir() if _SEGMENT.fullmatch(entry.name) and not entry.is_symlink())
    return sorted(found, key=_start_ns)


def settle(logs: Path, *, timeout_s: float) -> bool:
    """Wait until no logger writes any more: all that ended writers said is in the files. Blocking."""
    deadline = time.monotonic() + timeout_s
    for segment in segments(logs):
        with segment.open("rb") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(0.001)
    return True


def pack_logs(logs: Path, *, max_bytes: int = 16 << 20) -> bytes:
    """All segments for the next node: msgpack of {name: contents}; of more than `max_bytes` the newest."""
    packed: dict[str, bytes] = {}
    for segment in reversed(segments(logs)):
        if max_bytes <= 0:
            break
        with segment.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            packed[segment.name] = file.read(max_bytes)
        max_bytes -= len(packed[segment.name])
    return msgspec.msgpack.encode(packed)


def add_log_segments(logs: Path, packed: bytes) -> None:
    """Add what `pack_logs` of a peer gave; segments that are here already stay. Raises BadInput."""
    try:
        contents = msgspec.msgpack.decode(packed, type=dict[str, bytes])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"the peer's log segments cannot be read: {error}") from error
    for name in contents:
        if not _SEGMENT.fullmatch(name):
            raise BadInput(f"{name!r} is not a log segment's name: the peer does not speak our protocol")
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in contents.items():
        with contextlib.suppress(FileExistsError), (logs / name).open("xb") as file:
            file.write(text)


def _start_ns(segment: Path) -> int:
    return int(segment.name.partition("-")[0])
