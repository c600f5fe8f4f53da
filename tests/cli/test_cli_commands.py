"""The command line as people and tools use it: real processes, a real controller, agents in memory."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import PROBED_DELTA_BYTES, FakeRegion
from live_controller import LiveController, wait_until
from whimbrel.cli.main import run
from whimbrel.controller.client import ControllerClient
from whimbrel.model.errors import Refused
from whimbrel.model.migration import Outcome

RECORD_FIELDS = {
    "id", "service", "workload", "source", "destination", "strategy", "reason", "outcome", "error",
    "total_ms", "freeze_ms", "outage_udp_ms", "outage_tcp_ms", "lost", "resets", "state_ok", "rss_bytes",
    "bytes_sent", "raw_bytes", "phases", "rounds",
}  # fmt: skip

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def whimbrel(
    live: LiveController,
    region: FakeRegion,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    """Run a command line in this process; gives exit code, standard output, standard error."""
    monkeypatch.setenv("WHIMBREL_CONTROLLER", live.address)

    def call(*argv: str) -> tuple[int, str, str]:
        code = run(argv)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def demo(client: ControllerClient) -> str:
    return client.run_service("demo", "oci:/x", "edge-1", workload="20 MB").spec.name


def spawn(live: LiveController, *argv: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "whimbrel", *argv],
        env={**os.environ, "WHIMBREL_CONTROLLER": live.address},
        text=True,
        **options,
    )


def test_a_service_from_run_to_rm(whimbrel: Call) -> None:
    code, out, err = whimbrel(
        "service", "run", "web", "--image", "rootfs:/srv/web", "--node", "edge-2", "--port", "80/tcp",
        "--port", "53/udp", "--env", "A=b=c", "--memory", "64MiB", "--", "serve", "--fast",
    )  # fmt: skip
    assert (code, out, err) == (0, "web runs on edge-2 at 10.77.1.1\n", "")
    code, out, _ = whimbrel("service", "inspect", "web", "--json")
    status = json.loads(out)
    assert code == 0
    assert status["spec"] == {
        "name": "web", "image": "rootfs:/srv/web", "address": "10.77.1.1/16", "ports": ["80/tcp", "53/udp"],
        "args": ["serve", "--fast"], "env": ["A=b=c"], "memory_limit_bytes": 64 << 20, "workload": "",
        "engine": "runc", "volumes": [], "shared": False,
    }  # fmt: skip
    assert (status["node"], status["state"], status["rss_bytes"]) == ("edge-2", "running", 20 << 20)
    _, out, _ = whimbrel("service", "inspect", "web")
    assert "rootfs:/srv/web" in out
    _, out, _ = whimbrel("service", "ls")
    assert out.splitlines()[1].split()[:5] == ["web", "edge-2", "running", "10.77.1.1", "80/tcp,"]
    _, out, _ = whimbrel("service", "ls", "--json")
    assert json.loads(out) == [status]
    assert whimbrel("service", "logs", "web") == (0, "line one\nline two\n", "")
    assert whimbrel("service", "exec", "web", "echo", "a", "--json") == (0, "a --json\n", "")
    said = "web on edge-2: 67.1 MB of memory, of which 1.36 MB were written in 250 ms\n"
    assert whimbrel("service", "probe", "web", "--interval", "250ms") == (0, said, "")
    assert json.loads(whimbrel("service", "probe", "web", "--json")[1])["delta_bytes"] == PROBED_DELTA_BYTES
    assert whimbrel("service", "rm", "web") == (0, "removed web\n", "")
    assert json.loads(whimbrel("service", "ls", "--json")[1]) == []


def test_a_relative_image_path_is_made_absolute(
    whimbrel: Call, client: ControllerClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert whimbrel("service", "run", "web", "--image", "oci:image:v1", "--node", "edge-1")[0] == 0
    assert client.service("web").spec.image == f"oci:{tmp_path}/image:v1"


def test_exec_that_fails(whimbrel: Call, demo: str) -> None:
    assert whimbrel("service", "exec", demo, "false") == (
        1, "", "whimbrel: false ended with exit code 1 in demo\n",
    )  # fmt: skip
    code, out, _ = whimbrel("service", "exec", "--json", demo, "false")
    assert (code, json.loads(out)) == (1, {"exit_code": 1, "stdout": "", "stderr": ""})


def test_migrate_with_json_has_the_stable_fields(whimbrel: Call, region: FakeRegion, demo: str) -> None:
    code, out, err = whimbrel(
        "migrate", demo, "--to", "edge-2", "--strategy", "pre-copy", "--max-downtime", "100ms",
        "--deadline", "20s", "--bandwidth", "100mbit", "--json",
    )  # fmt: skip
    record = json.loads(out)
    assert code == 0
    assert set(record) >= RECORD_FIELDS
    assert (record["outcome"], record["source"], record["destination"]) == ("done", "edge-1", "edge-2")
    assert record["phases"] == [{"name": "rounds", "start_ms": 0.0, "duration_ms": 200.0}]
    assert record["rounds"] == [
        {"n": 1, "dirty_pages": 5120, "bytes_sent": 8 << 20, "duration_ms": 100.0, "raw_bytes": 20 << 20,
         "file_bytes": 0, "zero_pages": 77, "codec": "zstd 60 %, raw 40 %"}
    ]  # fmt: skip
    assert record["outage_udp_ms"] is None
    assert "demo: edge-1 -> edge-2: " in err
    request = region.agents["edge-1"].requests[-1].request
    assert (request.max_downtime_ms, request.deadline_ms, request.bandwidth_bps) == (100, 20_000, 1e8)
    assert json.loads(whimbrel("migration", "show", record["id"], "--json")[1]) == record
    shown = whimbrel("migration", "show", record["id"])[1]
    assert re.search(r"5120 +77 +21 MB +8.39 MB +100.0 +zstd 60 %, raw 40 %", shown), shown
    assert json.loads(whimbrel("migration", "ls", "--json")[1])[0] == record
    _, out, _ = whimbrel("migration", "show", record["id"])
    assert "45.5 ms" in out
    assert "5120" in out
    _, out, _ = whimbrel("migration", "ls", "--service", demo, "--limit", "1")
    assert out.splitlines()[1].split()[:3] == [record["id"], "demo", "edge-1"]


def test_migrate_tells_in_plain_lines(whimbrel: Call, demo: str, region: FakeRegion) -> None:
    region.go.clear()
    threading.Timer(1.0, region.go.set).start()  # not over before anybody listens
    code, out, err = whimbrel("migrate", demo, "--to", "edge-2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "demo: edge-1 -> edge-2: freeze" in lines
    assert lines[-1].startswith("demo moved from edge-1 to edge-2 in 321 ms, frozen for 45.5 ms")
    assert "\x1b" not in out


def test_dry_run(whimbrel: Call, demo: str) -> None:
    code, out, _ = whimbrel("migrate", demo, "--to", "edge-2", "--dry-run")
    assert (code, out) == (0, "demo can move from edge-1 to edge-2: nothing was done\n")


BAD = {
    "unknown service": (["migrate", "nope", "--to", "edge-2"], "there is no service 'nope'"),
    "unknown node": (["migrate", "demo", "--to", "nope"], "there is no node 'nope'"),
    "same node": (["migrate", "demo", "--to", "edge-1"], "already runs on edge-1"),
    "gateway": (["migrate", "demo", "--to", "gw-1"], "is a gateway"),
    "time": (["migrate", "demo", "--to", "edge-2", "--max-downtime", "soon"], "100ms"),
    "rate": (["migrate", "demo", "--to", "edge-2", "--bandwidth", "fast"], "100mbit"),
    "inspect": (["service", "inspect", "nope"], "there is no service 'nope'"),
    "logs": (["service", "logs", "nope"], "there is no service 'nope'"),
    "rm": (["service", "rm", "nope"], "there is no service 'nope'"),
    "exec": (["service", "exec", "nope", "ls"], "there is no service 'nope'"),
    "probe": (["service", "probe", "nope"], "there is no service 'nope'"),
    "probe for long": (["service", "probe", "demo", "--interval", "1min"], "interval_s"),
    "name used": (
        ["service", "run", "demo", "--image", "oci:/x", "--node", "edge-2"],
        "already used on edge-1",
    ),
    "address used": (
        ["service", "run", "new", "--image", "oci:/x", "--node", "edge-2", "--address", "10.77.1.1"],
        "10.77.1.1 is already used by service demo on edge-1",
    ),
    "image": (["service", "run", "new", "--image", "docker:/x", "--node", "edge-2"], "write oci:PATH"),
    "node of run": (["service", "run", "new", "--image", "oci:/x", "--node", "x"], "there is no node 'x'"),
    "env": (["service", "run", "new", "--image", "oci:/x", "--node", "edge-2", "--env", "A"], "KEY=VALUE"),
    "memory": (
        ["service", "run", "new", "--image", "oci:/x", "--node", "edge-2", "--memory", "much"],
        "200MiB",
    ),
    "migration": (["migration", "show", "nope"], "there is no migration 'nope'"),
    "resolve": (["migration", "resolve", "nope", "--runs-at", "source"], "there is no migration 'nope'"),
    "resolve where": (["migration", "resolve", "nope", "--runs-at", "home"], "say source or destination"),
    "cancel": (["migration", "cancel", "nope"], "there is no migration 'nope'"),
    "controller": (["node", "ls", "--controller", "unix:/nowhere.sock"], "whimbrel lab up"),
    "address": (["node", "ls", "--controller", "nowhere"], "tcp:HOST:PORT"),
    "controller config": (["controller", "--config", "/nowhere.toml"], "/nowhere.toml"),
    "agent config": (["agent", "--config", "/nowhere.toml"], "/nowhere.toml"),
    "bench": (
        ["bench", "nothing"],
        "choose downtime, faults, pages, files, codecs, link, plan, api, dashboard or",
    ),
    "bench file": (["bench", "downtime", "--json", "/nowhere/x.json"], "/nowhere is no directory"),
    "bench sizes": (["bench", "downtime", "--sizes", "big"], "20,200,1024"),
    "scenario": (["demo", "--scenario", "nothing"], "there is no scenario 'nothing'"),
    "node": (["node", "inspect", "edge-9"], "there is no node 'edge-9'"),
    "node to measure": (["node", "benchmark", "gw-1"], "gateway"),
    "shown topology": (["lab", "show", "/nowhere.toml"], "shipped one: default, campus, coordinated, corridor, shared"),
    "drawn topology": (["lab", "show", "default", "--out", "/nowhere/x.png"], "cannot be written to /nowhere/x.png"),
    "topology": (["lab", "up", "--topology", "/nowhere.toml"], "/nowhere.toml"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_1(whimbrel: Call, demo: str, case: str) -> None:
    if case == "agent config" and os.geteuid() != 0:
        pytest.skip("only root gets as far as the agent's configuration")
    argv, says = BAD[case]
    code, out, err = whimbrel(*argv)
    assert (code, out) == (1, "")
    assert err.startswith("whimbrel: ")
    assert err.count("\n") == 1
    assert says in err


def test_an_agent_that_is_down(whimbrel: Call, region: FakeRegion, demo: str) -> None:
    region.down("edge-2")
    code, out, err = whimbrel("migrate", demo, "--to", "edge-2")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the agent of edge-2" in err
    code, out, err = whimbrel("node", "ls")
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()[1:]] == ["up", "down", "up", "up"]
    assert err.count("\n") == 1
    _, out, err = whimbrel("service", "ls")
    assert "services on edge-2 are not shown" in err
    nodes = json.loads(whimbrel("node", "ls", "--json")[1])
    assert [node["up"] for node in nodes] == [True, False, True, True]
    assert set(nodes[0]) >= {"name", "role", "host", "port", "up", "services", "capabilities", "resources"}


def test_a_node_shows_what_it_has_and_uses(whimbrel: Call, demo: str) -> None:
    code, out, _ = whimbrel("node", "ls")
    assert code == 0
    assert re.search(r"edge-1 .* 0\.25/1\.5 +400 ", out), out
    node = json.loads(whimbrel("node", "inspect", "edge-1", "--json")[1])
    assert node["resources"]["cpu_capacity"] == 1.5
    assert node["service_use"] == [{"name": demo, "cpus_used": 0.25, "memory_bytes": 20 << 20}]
    assert node["paths"] == [{"to": "elsewhere", "round_trip_ms": 12.5, "measured_unix_s": 1.0, "rate_bps": 75e6}]
    out = whimbrel("node", "inspect", "edge-1")[1]
    assert re.search(r"elsewhere +12\.50 ms +75 Mbit/s", out), out
    assert re.search(r"processors +0\.25 of 1\.5 used by services", out), out


def test_computing_power_is_measured_again_when_asked(whimbrel: Call, demo: str) -> None:
    assert "401.0 events/s" in whimbrel("node", "benchmark", "edge-1")[1]
    assert json.loads(whimbrel("node", "benchmark", "edge-1", "--json")[1])["events_per_s"] == 402.0
    assert json.loads(whimbrel("node", "inspect", "edge-1", "--json")[1])["resources"]["computing_power"] == 402.0


def test_topologies_are_listed_and_shown(whimbrel: Call, tmp_path: Path) -> None:
    assert json.loads(whimbrel("lab", "topologies", "--json")[1])[0]["name"] == "default"
    assert "coordinated" in whimbrel("lab", "topologies")[1]
    code, out, _ = whimbrel("lab", "show", "coordinated", "--out", str(tmp_path / "it.png"))
    assert code == 0
    assert re.search(r"pop-1 +pop-2 +100 Mbit/s, 50 ms", out), out
    assert re.search(r"cloud +cloud +pop-cloud +1 ", out), out
    assert (tmp_path / "it.png").exists()
    assert json.loads(whimbrel("lab", "show", "corridor", "--json")[1])["name"] == "corridor"


def test_a_refusal_by_the_agent(whimbrel: Call, region: FakeRegion, demo: str) -> None:
    region.agents["edge-1"].refuse_migration = Refused("demo uses io_uring: stop it first")
    assert whimbrel("migrate", demo, "--to", "edge-2") == (
        1,
        "",
        "whimbrel: demo uses io_uring: stop it first\n",
    )
    code, out, err = whimbrel("migrate", demo, "--to", "edge-2", "--json")
    assert (code, json.loads(out)["outcome"]) == (1, "rolled-back")
    assert "io_uring" in err


def test_a_second_migration_and_cancel(whimbrel: Call, region: FakeRegion, client: ControllerClient, demo: str) -> None:
    region.go.clear()
    first = client.start_migration(demo, "edge-2")
    wait_until(lambda: region.agents["edge-1"].requests, "the agent migrates")
    code, _, err = whimbrel("migrate", demo, "--to", "edge-3")
    assert code == 1
    assert f"whimbrel migration cancel {first.id}" in err
    assert whimbrel("migration", "cancel", first.id) == (0, "cancelled: demo runs on at edge-1\n", "")
    code, _, err = whimbrel("migration", "cancel", first.id)
    assert code == 1
    assert "is over (cancelled)" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["service"], "whimbrel service --help"),
        (["service", "run"], "'NAME'"),
        (["nothing"], "'nothing'"),
        (["migrate", "demo"], "--to"),
        (["migrate", "demo", "--to", "x", "--strategy", "teleport"], "stop-and-copy"),
        (["node", "ls", "--nothing"], "--nothing"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(whimbrel: Call, argv: list[str], says: str) -> None:
    code, out, err = whimbrel(*argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err


def test_an_unexpected_error_is_one_line_too(whimbrel: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ControllerClient) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(ControllerClient, "nodes", broken)
    code, out, err = whimbrel("node", "ls")
    assert (code, out) == (1, "")
    assert err.startswith("whimbrel: internal error: RuntimeError: two lines")
    assert err.count("\n") == 1


# --- real processes -----------------------------------------------------------------------------------------
def test_ctrl_c_undoes_the_migration(
    live: LiveController, region: FakeRegion, client: ControllerClient, demo: str
) -> None:
    region.go.clear()
    process = spawn(live, "migrate", demo, "--to", "edge-2", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert "demo: edge-1 -> edge-2: " in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "cancelled" in err
    assert client.service(demo).node == "edge-1"
    assert client.migrations()[0].outcome is Outcome.CANCELLED


def test_a_terminal_gets_a_bar(live: LiveController, region: FakeRegion, demo: str) -> None:
    region.go.clear()
    ours, theirs = pty.openpty()
    process = spawn(live, "migrate", demo, "--to", "edge-2", stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"round 1" not in seen:
        seen += os.read(ours, 4096)
    region.go.set()
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(20) == 0
    assert b"\x1b[" in seen
    assert b"demo moved from edge-1 to edge-2" in seen


def test_a_reader_that_had_enough(live: LiveController, demo: str) -> None:
    script = f"{sys.executable} -m whimbrel service ls --json | true"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "WHIMBREL_CONTROLLER": live.address},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""


def test_help_is_quick() -> None:
    """The part of the time that is ours: nothing heavy may be imported for it."""
    heavy = ("fastapi", "uvicorn", "numpy", "pyroute2", "httpx", "google.protobuf", "psutil", "rich.markdown")
    script = (
        "import sys; from whimbrel.cli.main import run; code = run(['--help']);"
        f"sys.exit(','.join(name for name in {heavy!r} if name in sys.modules) or code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in (
        "check",
        "lab",
        "demo",
        "controller",
        "agent",
        "node",
        "service",
        "migrate",
        "migration",
        "bench",
    ):
        assert f"  {command} " in done.stdout


def test_version(whimbrel: Call) -> None:
    code, out, _ = whimbrel("--version")
    assert code == 0
    assert out.startswith("whimbrel ")
