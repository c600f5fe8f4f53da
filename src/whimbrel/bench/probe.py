"""The measuring client as the benchmarks and the demo use it: started in the user's place, told when a
migration begins and ends, asked what it saw."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from whimbrel.bench.companion import deferred
from whimbrel.client import control
from whimbrel.client.report import Noise, Report, Settled
from whimbrel.model.errors import StepFailed, Unreachable
from whimbrel.model.migration import MigrationRecord
from whimbrel.workloads.recipe import Recipe

ANSWER_TIMEOUT_S = 90.0


class Probe:
    """One measuring client. `prefix` is the command that puts it in the user's place, for example
    ``("ip", "netns", "exec", "user-1")``. Use as a context manager; it ends the client in any case."""

    def __init__(
        self,
        recipe: Recipe,
        host: str,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        data: Path | None = None,
        prefix: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        """`settings`: what the service was told, where it is not what the recipe says; `data`: the folder with the
        client's files; `port`: 0 for the recipe's."""
        self.recipe = recipe
        # by its path, so that it runs whatever the place's working directory and module path are
        self._argv = [*prefix, sys.executable, str(Path(control.__file__)), "--client", str(recipe.client_file)]
        self._argv += ["--host", host, "--port", str(port or recipe.port), *options]
        self._argv += [f"--set={name}={value}" for name, value in {**recipe.settings, **(settings or {})}.items()]
        if data is not None:
            self._argv += ["--data", str(data)]
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
        """Start the client and wait until the service answered each protocol. Raises Unreachable."""
        try:
            with deferred():
                # a session of its own: Ctrl-C is for us, and we end the client in order
                self._process = subprocess.Popen(
                    self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
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

    def end(self) -> Report:
        """The migration is over: wait for late answers, check the service's state, return what was seen."""
        report = msgspec.convert(self._ask("mark end", "report"), Report)
        return msgspec.structs.replace(report, workload=self.recipe.name)

    def noise(self, seconds: int) -> Noise:
        return msgspec.convert(self._ask(f"noise {seconds}", "noise"), Noise)

    def settled(self) -> Settled:
        """The requests that were answered or given up since this was asked last; may be asked at any time."""
        return msgspec.convert(self._ask("settled", "settled"), Settled)

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


def measured(record: MigrationRecord, report: Report) -> MigrationRecord:
    """The migration's record with what the client saw of it."""
    return msgspec.structs.replace(
        record,
        outage_udp_ms=report.outage_udp_ms,
        outage_tcp_ms=report.outage_tcp_ms,
        lost=report.lost,
        resets=report.resets,
        state_ok=report.state_ok,
    )
