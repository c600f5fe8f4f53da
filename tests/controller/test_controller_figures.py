"""What others watch a controller by: Prometheus's figures, the Grafana file, traces, logs, results of experiments."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from planning_people import report
from prometheus_client.parser import text_string_to_metric_families
from test_controller_api import check_problem

from fakes import FakeRegion
from live_controller import LiveController, wait_until
from whimbrel.controller.config import parse
from whimbrel.controller.experiments import Experiments
from whimbrel.controller.parts import Controller
from whimbrel.controller.traces import Traces
from whimbrel.model.errors import BadInput
from whimbrel.model.migration import MigrationRecord, Outcome, Phase
from whimbrel.model.radio import HandoverRecord

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    """A controller with JSON logs and a folder of results."""
    with FakeRegion() as region:
        directory = Path(tmp_path_factory.mktemp("watched"))
        live = LiveController(region, directory)
        config = directory / "controller.toml"
        config.write_text(f'log = "json"\nexperiments_dir = "{directory}/out"\n' + config.read_text())
        live.start()
        yield live
        live.stop()


@pytest.fixture
def http(watched: LiveController) -> Iterator[httpx.Client]:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(watched.socket), verify=False), base_url="http://controller"
    ) as http:
        yield http


def figures(http: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_figures_follow_what_happens(watched: LiveController, http: httpx.Client) -> None:
    with watched.client() as client:
        client.run_service("m", "oci:/x", "edge-1")
        before = figures(http)
        client.migrate("m", "edge-2", strategy="pre-copy")
        client.tell(report("u", serving="gw-1"))
        client.tell(HandoverRecord(user="u", source="gw-1", target="gw-2", reason="r", unix_s=1.0, elapsed_s=1.0,
                                   interruption_ms=40.0))  # fmt: skip
        seen = figures(http)
    strategy = (("strategy", "pre-copy"),)
    done = "whimbrel_migrations_total", (("outcome", "done"), *strategy)
    assert seen[done] - before.get(done, 0) == 1
    assert seen["whimbrel_migration_freeze_seconds_sum", strategy] == pytest.approx(0.0455)
    assert seen["whimbrel_migration_sent_bytes_total", strategy] == 21 << 20
    assert seen["whimbrel_node_up", (("node", "edge-1"), ("role", "edge"))] == 1
    assert seen["whimbrel_node_services", (("node", "edge-2"),)] == 1
    assert seen["whimbrel_users", (("base_station", "gw-2"),)] == 1, "where it was handed over to since its report"
    assert seen["whimbrel_handovers_total", (("result", "done"),)] == 1
    assert seen["whimbrel_handover_interruption_seconds_sum", ()] == pytest.approx(0.04)
    assert seen["whimbrel_user_reports_total", ()] == 1


def test_requests_are_counted_by_route_whatever_names_are_asked_for(http: httpx.Client) -> None:
    for number in range(5):
        http.get(f"/v1/services/nothing-{number}")
        http.get(f"/nothing/{number}")
    labels = {key[1] for key in figures(http) if key[0] == "whimbrel_http_request_seconds_count"}
    routes = {dict(one)["route"] for one in labels}
    assert "/v1/services/{name}" in routes
    assert not any("nothing" in route for route in routes)


def test_the_grafana_file_asks_for_figures_that_there_are(http: httpx.Client, watched: LiveController) -> None:
    dashboard = json.loads((REPO / "deploy/grafana-dashboard.json").read_text())
    with watched.client() as client:
        client.run_service("g", "oci:/x", "edge-1")
        client.migrate("g", "edge-2")
    text = http.get("/metrics").text + (REPO / "src/whimbrel/agent/metrics.py").read_text()
    asked = set()
    for panel in dashboard["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            asked |= set(re.findall(r"whimbrel_\w+", target["expr"]))
    assert len(asked) >= 15
    for name in asked:
        assert re.sub(r"_(total|bucket)$", "", name) in text, name
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


# --- logs ---------------------------------------------------------------------------------------------------
def test_logs_are_json_and_tell_who_changed_what(watched: LiveController, http: httpx.Client) -> None:
    http.post("/v1/services", json={"node": "nowhere", "name": "x", "image": "oci:/x"})
    lines: list[dict[str, Any]] = []

    def told() -> bool:
        lines[:] = [json.loads(line) for line in watched.log.read_text().splitlines()]
        return any(line["event"] == "request" and line["status"] == 404 for line in lines)

    wait_until(told, "the request is in the log")
    (request,) = [line for line in lines if line["event"] == "request" and line["status"] == 404]
    assert (request["method"], request["path"], request["level"]) == ("POST", "/v1/services", "info")
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line["timestamp"]) for line in lines)
    assert any(line["event"] == "agent connected" and line["node"] == "edge-1" for line in lines)


# --- traces -------------------------------------------------------------------------------------------------
def record(**changes: Any) -> MigrationRecord:
    values: dict[str, Any] = {
        "id": "1", "service": "s", "source": "a", "destination": "b", "strategy": "hybrid", "outcome": Outcome.DONE,
        "started_unix_s": 1000.0, "total_ms": 900.0, "freeze_ms": 40.0, "bytes_sent": 5,
        "phases": (Phase(name="prepare", start_ms=0.0, duration_ms=500.0),
                   Phase(name="freeze.dump", start_ms=505.0, duration_ms=10.0),
                   Phase(name="freeze.restore.load", start_ms=520.0, duration_ms=5.0),
                   Phase(name="freeze.restore", start_ms=518.0, duration_ms=20.0),
                   Phase(name="final.dump", start_ms=480.0, duration_ms=10.0),
                   Phase(name="freeze", start_ms=500.0, duration_ms=40.0)),
    }  # fmt: skip
    return MigrationRecord(**(values | changes))


def name_of(parent: Any, spans: dict[str, Any]) -> str:
    return next((name for name, one in spans.items() if parent and one.context.span_id == parent.span_id), "")


def test_a_migration_is_a_span_and_its_phases_are_below_it() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    traces.told(record(outcome=Outcome.RUNNING), None)
    traces.told(record(), None)
    traces._provider.force_flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"migration", *(phase.name for phase in record().phases)}
    assert {name: name_of(span.parent, spans) for name, span in spans.items()} == {
        "migration": "", "prepare": "migration", "freeze": "migration", "freeze.dump": "freeze",
        "freeze.restore": "freeze", "freeze.restore.load": "freeze.restore", "final.dump": "migration",
    }  # fmt: skip
    whole, freeze = spans["migration"], spans["freeze"]
    assert (whole.start_time, whole.end_time) == (1000_000_000_000, 1000_900_000_000)
    assert (freeze.start_time, freeze.end_time) == (1000_500_000_000, 1000_540_000_000)
    assert freeze.parent is not None
    assert freeze.parent.span_id == whole.context.span_id
    assert whole.attributes is not None
    assert whole.attributes["whimbrel.freeze_ms"] == 40.0
    exporter.clear()
    traces.told(record(outcome=Outcome.FAILED, error="the link broke"), None)
    traces._provider.force_flush()
    failed = next(span for span in exporter.get_finished_spans() if span.name == "migration")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "the link broke"
    traces.close()


TOML = (
    '\nlisten = "unix:/x/c.sock"\nstate_dir = "{0}"\n[[nodes]]\nname = "e"\nrole = "edge"\nhost = "192.0.2.1"\n'
    'port = 1\noverlay_host = "192.0.2.1"\n'
)


@pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.exporter") is not None, reason="the exporter is installed here"
)
def test_without_the_packages_one_line_says_what_to_install(tmp_path: Path) -> None:
    config = parse('traces = "http://127.0.0.1:4318/v1/traces"' + TOML.format(tmp_path))
    with pytest.raises(BadInput, match=r"pip install 'whimbrel\[traces\]'") as caught:
        Controller(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('traces = "collector:4318"', "OTLP"),
        ('log = "xml"', "log"),
        ('experiments_dir = "out"', "absolute"),
    ],
)
def test_settings_that_are_wrong_are_named(line: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=told):
        parse(line + TOML.format(tmp_path))


# --- experiments --------------------------------------------------------------------------------------------
@pytest.fixture
def results(watched: LiveController) -> Path:
    out = watched.socket.parent / "out"
    (out / "fast/more").mkdir(parents=True, exist_ok=True)
    (out / "fast/table-1.png").write_bytes(b"\x89PNG")
    (out / "fast/fast.json").write_text("{}")
    (out / "fast/drawing.svg").write_text("<svg/>")
    (out / "fast/run.py").write_text("secret")
    (out / "fast/.hidden.json").write_text("secret")
    (out / "fast/more/report.md").write_text("# it")
    if not (out / "fast/link.json").is_symlink():
        (out / "fast/link.json").symlink_to("/etc/hostname")
    return out


def test_a_result_that_vanishes_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kept.png", "gone.png"):
        (tmp_path / name).write_bytes(b"\x89PNG")
    walk = os.walk

    def walked(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(root):
            (tmp_path / "gone.png").unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", walked)
    (listed,) = Experiments(tmp_path).all()
    assert listed.pictures == ("kept.png",)


def test_results_are_listed_and_read(results: Path, http: httpx.Client) -> None:
    listed = {one["name"]: one for one in http.get("/v1/experiments").json()}
    assert set(listed) == {"fast", "fast/more"}
    assert listed["fast"]["pictures"] == ["fast/drawing.svg", "fast/table-1.png"]
    assert listed["fast"]["files"] == ["fast/fast.json"]
    assert listed["fast"]["figure"] == "fast/drawing.svg"
    assert listed["fast/more"]["files"] == ["fast/more/report.md"]
    picture = http.get("/v1/experiments/files/fast/table-1.png")
    assert picture.content == b"\x89PNG"
    assert picture.headers["content-type"] == "image/png"
    drawing = http.get("/v1/experiments/files/fast/drawing.svg")
    assert "sandbox" in drawing.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "fast/run.py", "fast/.hidden.json", "fast/link.json", "fast", "nothing.json", "..%2Fcontroller.toml",
        "%2e%2e/state/x.json", "fast/..%2f..%2fcontroller.log", "%2Fetc%2Fhostname.json", "fast/a%00.json",
        "a" * 300 + ".json",
    ],
)  # fmt: skip
def test_nothing_else_is_told(results: Path, http: httpx.Client, path: str) -> None:
    check_problem(http.get(f"/v1/experiments/files/{path}"), 404, "bad-input")


def test_where_no_folder_is_configured_there_is_nothing(tmp_path: Path) -> None:
    assert Experiments(None).all() == []
    assert Experiments(tmp_path / "none").all() == []
    (tmp_path / "a.png").write_bytes(b"x")
    os.utime(tmp_path / "a.png", (5.0, 5.0))
    (one,) = Experiments(tmp_path).all()
    assert (one.name, one.figure, one.unix_s) == (tmp_path.name, "a.png", 5.0)
