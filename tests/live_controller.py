"""A real controller process on a UNIX socket, in front of fake agents."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from fakes import FakeRegion
from whimbrel.controller.client import ControllerClient
from whimbrel.controller.database import open_database, parse_database
from whimbrel.model.errors import Unreachable


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.02)


@cache
def empty_database() -> bytes:
    """As a controller leaves it that nobody asked for anything. To write its schema takes a fifth of a start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "controller.sqlite3"
        open_database(parse_database("", path)).dispose()
        return path.read_bytes()


class LiveController:
    """`start`, `terminate` and `kill` as often as you like; the state directory stays."""

    def __init__(
        self, region: FakeRegion, directory: Path, *, listen: str = "", more: str = "", token: str = ""
    ) -> None:
        """`more`: tables of the configuration beside the region's; `token`: what its clients show."""
        self.region = region
        self.address = listen or f"unix:{directory}/c.sock"
        self.token = token
        self.socket = directory / "c.sock"
        self.log = directory / "controller.log"
        self.database = directory / "state/controller.sqlite3"
        self._config = directory / "controller.toml"
        self._config.write_text(region.config_text(self.address, str(directory / "state")) + more)
        self._process: subprocess.Popen[bytes] | None = None
        if not self.database.exists():
            self.database.parent.mkdir(parents=True, exist_ok=True)
            self.database.write_bytes(empty_database())

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "whimbrel", "controller", "--config", str(self._config)], stderr=log
            )
        wait_until(self.answers, f"the controller answers\n{self.log.read_text()}")

    def answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"the controller ended: {self.log.read_text()}")
        try:
            with self.client() as client:
                return all(node.up for node in client.nodes())
        except Unreachable:
            return False

    def client(self) -> ControllerClient:
        return ControllerClient(self.address, self.token)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(15)
        self._process = None
        return code

    def stop(self) -> None:
        if self._process is not None:
            self.terminate()


def asking(region: FakeRegion, directory: Path, tokens: dict[str, str]) -> LiveController:
    """One that asks for tokens, of which there are these, by role; its clients show the last one."""
    lines = ", ".join(
        f'{{ name = "{role}", sha256 = "{hashlib.sha256(token.encode()).hexdigest()}", role = "{role}" }}'
        for role, token in tokens.items()
    )
    return LiveController(region, directory, more=f"\n[api]\ntokens = [{lines}]\n", token=list(tokens.values())[-1])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    with FakeRegion() as region:
        controller = LiveController(region, Path(tmp_path_factory.mktemp("ctl")))
        controller.start()
        yield controller
        controller.stop()


@pytest.fixture
def region(live: LiveController) -> Iterator[FakeRegion]:
    """The fake agents behind the controller, fresh."""
    live.region.reset()
    yield live.region
    live.region.reset()


@pytest.fixture
def client(live: LiveController, region: FakeRegion) -> Iterator[ControllerClient]:
    with live.client() as client:
        yield client
