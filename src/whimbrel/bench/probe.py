"""The measuring client as the benchmarks and the demo use it: started in the user's place, told when a
migration begins and ends, asked what it saw."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from whimbrel.bench import client
from whimbrel.model.errors import StepFailed, Unreachable
from whimbrel.model.migration import MigrationRecord

ANSWER_TIMEOUT_S = 90.0


class Spread(msgspec.Struct, frozen=True):
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Window(msgspec.Struct, frozen=True):
    """What the client saw of one migration; the fields are those of the client's `mark end` answer.

    `outage_*_at_ms` tells when the request that waited longest was sent, counted from the start mark;
    `client_late_ms` how far the client itself was behind its schedule at worst.
    """

    lost: int
    resets: int
    counter_ok: bool
    outage_udp_ms: float | None
    outage_tcp_ms: float | None
    outage_udp_at_ms: float | None
    outage_tcp_at_ms: float | None
    requests_udp: int
    requests_tcp: int
    quiet_ms: float
    window_ms: float
    quiet_lost: int
    duplicates: int
    damaged: int
    client_late_ms: float
    quiet_udp_ms: Spread
    quiet_tcp_ms: Spread


class Noise(msgspec.Struct, frozen=True):
    """What the client measures when nothing moves; `outage_*_ms` are spreads over `windows` of 1 s."""

    windows: int
    lost: int
    outage_udp_ms: Spread
    outage_tcp_ms: Spread
    delay_udp_ms: Spread
    delay_tcp_ms: Spread
    client_late_ms: float


class Probe:
    """One measuring client. `prefix` is the command that puts it in the user's place, for example
    ``("ip", "netns", "exec", "user-1")``. Use as a context manager; it ends the client in any case."""

    def __init__(
        self, host: str, port: int, memory_mb: int, *, prefix: Sequence[str] = (), options: Sequence[str] = ()
    ) -> None:
        # by its path, so that it runs whatever the place's working directory and module path are
        self._argv = [*prefix, sys.executable, str(Path(client.__file__)), "--host", host]
        self._argv += ["--port", str(port), "--memory-mb", str(memory_mb), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""

    def __enter__(self) -> Probe:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the client and wait until the service answered both protocols. Raises Unreachable."""
        # a session of its own: Ctrl-C is for us, and we end the client in order
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            self._receive("ready")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()

    def quiet(self) -> None:
        """The quiet phase begins now; without this it is the last 2 s before `begin`."""
        self._ask("mark quiet", "quiet")

    def begin(self) -> None:
        self._ask("mark start", "start")

    def end(self) -> Window:
        """The migration is over: wait for late answers, return what was seen."""
        return msgspec.convert(self._ask("mark end", "window"), Window)

    def digest_ok(self) -> bool:
        """Does the service's memory hold exactly what its number of writes says?"""
        return bool(self._ask("digest", "digest")["ok"])

    def noise(self, seconds: int) -> Noise:
        return msgspec.convert(self._ask(f"noise {seconds}", "noise"), Noise)

    def _ask(self, command: str, event: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        try:
            os.write(process.stdin.fileno(), command.encode() + b"\n")
        except OSError as error:
            raise StepFailed(f"the measuring client ended (exit code {process.poll()})") from error
        return self._receive(event)

    def _receive(self, event: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdout is not None
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if not select.select([process.stdout], [], [], max(0.0, left_s))[0]:
                raise StepFailed(f"the measuring client gave no answer within {ANSWER_TIMEOUT_S:g} s")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise StepFailed(f"the measuring client ended (exit code {process.wait()})")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        answer: dict[str, Any] = msgspec.json.decode(line)
        if answer.get("event") == "error":
            raise Unreachable(f"measuring client: {answer.get('error')}")
        if answer.get("event") != event:
            raise StepFailed(f"the measuring client answered {answer.get('event')!r} where {event!r} was due")
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StepFailed("the measuring client is not running")
        return self._process


def measured(record: MigrationRecord, window: Window, digest_ok: bool) -> MigrationRecord:
    """The migration's record with what the client saw of it."""
    return msgspec.structs.replace(
        record,
        outage_udp_ms=window.outage_udp_ms,
        outage_tcp_ms=window.outage_tcp_ms,
        lost=window.lost,
        resets=window.resets,
        state_ok=digest_ok and window.counter_ok and window.damaged == 0,
    )
