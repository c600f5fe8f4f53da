"""`whimbrel workload`: as people and tools use it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from fakes import FakeRegion
from live_controller import LiveController
from whimbrel.cli.main import run
from whimbrel.workloads import catalogue
from whimbrel.workloads.simple import service as simple

Call = Callable[..., tuple[int, str, str]]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="building needs root")


@pytest.fixture
def whimbrel(capfd: pytest.CaptureFixture[str]) -> Call:
    def call(*argv: str) -> tuple[int, str, str]:
        code = run(argv)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, simple.__file__], env={"PORT": str(number)}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"serving" in process.stdout.readline()
    yield number
    process.kill()
    process.wait()
    process.stdout.close()


def test_ls_shows_all(whimbrel: Call) -> None:
    code, out, err = whimbrel("workload", "ls")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == catalogue.names()
    code, out, _ = whimbrel("workload", "ls", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert listed["memory"]["ports"] == ["7000/tcp", "7000/udp"]
    assert listed["memory"]["env"]["MEMORY_MB"] == "200"


@root_only
def test_build_prints_what_service_run_takes(
    whimbrel: Call, live: LiveController, region: FakeRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, reference, _ = whimbrel("workload", "build", "blank")
    assert code == 0
    code, out, _ = whimbrel("workload", "build", "blank", "--json")
    assert json.loads(out)["image"] == reference.strip()
    monkeypatch.setenv("WHIMBREL_CONTROLLER", live.address)
    code, out, _ = whimbrel("service", "run", "b", "--image", "workload:blank", "--node", "edge-1", "--json")
    assert code == 0
    spec = json.loads(out)["spec"]
    assert (spec["image"], spec["ports"], spec["workload"]) == (reference.strip(), ["7000/tcp"], "blank")
    code, out, _ = whimbrel("service", "run", "c", "--image", "workload:blank", "--node", "edge-1",
                            "--port", "9/tcp", "--workload", "mine", "--json")  # fmt: skip
    spec = json.loads(out)["spec"]
    assert (spec["ports"], spec["workload"]) == (["9/tcp"], "mine")


def test_client_reports(whimbrel: Call, port: int) -> None:
    watch = ("workload", "client", "simple", "--address", f"127.0.0.1:{port}", "--from", "here",
             "--quiet", "0.2", "--seconds", "0.3")  # fmt: skip
    code, out, err = whimbrel(*watch, "--json")
    report = json.loads(out)
    assert (code, report["workload"], report["state_ok"], report["resets"]) == (0, "simple", True, 0)
    assert report["requests"] == report["answered"] > 100
    assert report["outage_udp_ms"] is None
    assert report["outage_tcp_ms"] is not None
    assert "migrate now" in err
    code, out, _ = whimbrel(*watch)
    assert code == 0
    assert ["state", "ok"] in [line.split() for line in out.splitlines()]


def test_a_client_that_finds_something_wrong_says_so_by_its_exit_code(whimbrel: Call, port: int) -> None:
    """The client of another workload, to which this service's answers are wrong."""
    code, out, _ = whimbrel("workload", "client", "blank", "--address", f"127.0.0.1:{port}", "--from", "here",
                            "--quiet", "0.2", "--seconds", "0.2")  # fmt: skip
    assert code == 1
    assert "DAMAGED" in out


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("build", "tetris"), "there is no workload 'tetris': choose from blank, "),
        (("client", "tetris", "--address", "1.2.3.4"), "there is no workload"),
        (("client", "simple", "--address", ":1"), "write HOST or HOST:PORT"),
        (("client", "simple", "--address", "127.0.0.1:x"), "write HOST or HOST:PORT"),
        (("client", "simple", "--address", "127.0.0.1", "--set", "A"), "write KEY=VALUE"),
        (("client", "simple", "--address", "127.0.0.1", "--from", "mars"), "no node of the lab"),
    ],
)
def test_bad_input_is_one_line(whimbrel: Call, argv: tuple[str, ...], complaint: str) -> None:
    code, out, err = whimbrel("workload", *argv)
    assert (code, out) == (1, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_an_unknown_workload_as_an_image_is_one_line(whimbrel: Call) -> None:
    code, _, err = whimbrel("service", "run", "x", "--image", "workload:tetris", "--node", "edge-1")
    assert code == 1
    assert "there is no workload 'tetris'" in err
