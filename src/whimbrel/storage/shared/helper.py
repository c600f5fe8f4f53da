"""The process that touches the shared file system, so that the agent never waits for it longer than it wants to.

Calls and answers are JSON lines on its standard input and output. One that does not answer in time is killed and left
behind: a process that waits for a dead file system ends only when that answers or is unmounted.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from whimbrel.model.errors import Unreachable, WhimbrelError, error_from_wire

_CHUNK = 1 << 16
MOST_LEFT_BEHIND = 16
"""A process that waits for dead storage may outlive being killed; so many are enough to know that it is dead."""
_left_behind: list[subprocess.Popen[bytes]] = []


class Helper:
    """One such process. Calls block, at most for their time limit; one caller at a time. A context manager."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        _left_behind[:] = [process for process in _left_behind if process.poll() is None]
        if len(_left_behind) >= MOST_LEFT_BEHIND:
            raise Unreachable(
                f"the shared file system at {directory} does not answer, {MOST_LEFT_BEHIND} processes wait for it "
                "already: look after its server and its mount"
            )
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True, bufsize=0,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether it can take another call; one that did not answer in time cannot."""
        return self._process.stdin is not None and not self._process.stdin.closed and self._process.poll() is None

    def call(self, name: str, /, *, timeout_s: float, **arguments: Any) -> Any:
        """Run one of `CALLS`. Raises what it raised; Unreachable when there is no answer in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
            answer = self._read_line(time.monotonic() + timeout_s)
        except (BrokenPipeError, ValueError):
            answer = b""
        if not answer:
            self.abandon()
            raise Unreachable(
                f"the shared file system at {self.directory} does not answer ({name}, {timeout_s:g} s): look after its "
                "server and its mount"
            )
        kind, value = json.loads(answer)
        if kind != "ok":
            raise error_from_wire(kind, value)
        return value

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
                return b""
            chunk = os.read(fd, _CHUNK)
            if not chunk:
                return b""
            line += chunk
        return line

    def abandon(self) -> None:
        """End it without waiting for its end, which may never come. Its end closes the pipe that another thread may be
        listening to; to close that here would give the number to another file under that thread's hands."""
        self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        _left_behind.append(self._process)

    def close(self) -> None:
        if self.alive:
            self.abandon()

    def __enter__(self) -> Helper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _calls() -> dict[str, Callable[..., Any]]:
    from whimbrel.storage.shared import probe, roots, visible

    return {
        function.__name__: function
        for function in (
            probe.probe,
            roots.fill,
            roots.attach,
            roots.describe,
            roots.claim,
            roots.remove,
            roots.sweep,
            roots.tidy,
            visible.settle,
            visible.await_visible,
        )
    }


def main() -> None:
    calls = _calls()
    for line in sys.stdin.buffer:
        name, arguments = json.loads(line)
        try:
            answer = ["ok", calls[name](**arguments)]
        except WhimbrelError as error:
            answer = [error.code, str(error)]
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            answer = [WhimbrelError.code, f"the shared file system refused: {error.strerror or error}{where}"]
        os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
