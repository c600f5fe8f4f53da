"""The API holds what `/openapi.json` says: requests that nobody thought of, made by schemathesis, at a controller that
runs. What comes back is no failure of the server, and described: status, type and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from planning_people import report
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from fakes import FakeRegion, free_port
from live_controller import LiveController
from marks import MANY
from whimbrel.model.errors import BadInput, Conflict, ProtocolMismatch, Refused, StepFailed, Unreachable
from whimbrel.model.node import PathStatus
from whimbrel.model.radio import Hears

ENDLESS = "/v1/events"  # test_controller_live.py reads it
EXAMPLES = 10 if MANY else 2
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def region_there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    """With a service, a migration, a user and an application to be met by name."""
    with FakeRegion() as region:
        region.harmless = True
        for agent in region.agents.values():
            agent.paths = tuple(PathStatus(to=name, round_trip_ms=1.0) for name in region.agents)
        place = f"tcp:127.0.0.1:{free_port()}"
        live = LiveController(region, Path(tmp_path_factory.mktemp("schema")), listen=place)
        live.start()
        with live.client() as client:
            client.run_service("a", "oci:/x", "edge-1")
            client.migrate("a", "edge-2")
            client.tell(report("a", serving="gw-1"))
        yield live
        live.stop()


@pytest.fixture(scope="module")
def api(region_there: LiveController) -> Any:
    base = f"http://{region_there.address.removeprefix('tcp:')}"
    schema = schemathesis.openapi.from_dict(httpx.get(f"{base}/openapi.json").json())
    schema.config.base_url = base
    return schema


CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


def test_nothing_fails_and_nothing_is_answered_that_is_not_described(api: Any) -> None:
    checks = [CHECKS.get_one(name) for name in CHECKED]
    wrong: list[str] = []
    tried = 0
    for made in api.exclude(path=ENDLESS).get_all_operations():
        operation = made.ok()
        tried += 1

        @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        @SETTINGS
        def meant(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=checks, timeout=30)

        @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        @SETTINGS
        def not_meant(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=checks, timeout=30)

        for run in (meant, not_meant):
            try:
                run()
            except Unsatisfiable:
                continue  # nothing about this one can be wrong
            except Exception as error:
                wrong.append(f"{operation.label}: {error}")
    assert tried >= 30
    assert not wrong, "\n\n".join(wrong)


RUN = {"node": "edge-1", "name": "b", "image": "oci:/x"}
MOVE = {"service": "b", "destination": "edge-2"}
OFFER = {"name": "app", "image": "oci:/x", "ports": ["80/tcp"]}
HEARS = (Hears(base_station="gw-1", rssi_dbm=-50.0, filtered_dbm=-50.0),)
REPORT = msgspec.to_builtins(report("a", serving="gw-1", hears=HEARS))
THERE: list[tuple[str, str, dict[str, str], Any, int]] = [
    ("GET", "/v1/nodes/{name}", {"name": "edge-1"}, None, 200),
    ("POST", "/v1/nodes/{name}/benchmark", {"name": "edge-1"}, None, 200),
    ("POST", "/v1/services", {}, RUN, 201),
    ("GET", "/v1/services", {}, None, 200),
    ("GET", "/v1/services/{name}", {"name": "b"}, None, 200),
    ("GET", "/v1/services/{name}/logs", {"name": "b"}, None, 200),
    ("POST", "/v1/services/{name}/exec", {"name": "b"}, {"argv": ["true"]}, 200),
    ("POST", "/v1/migrations", {}, MOVE, 202),
    ("GET", "/v1/region", {}, None, 200),
    ("GET", "/v1/migrations/{migration_id}", {"migration_id": "?"}, None, 200),
    ("GET", "/v1/migrations/{migration_id}/events", {"migration_id": "?"}, None, 200),
    ("POST", "/v1/migrations/{migration_id}/cancel", {"migration_id": "?"}, None, 409),
    ("POST", "/v1/migrations/{migration_id}/resolve", {"migration_id": "?"}, {"runs_at": "source"}, 409),
    ("POST", "/v1/services/{name}/release", {"name": "b"}, None, 204),
    ("POST", "/v1/services/adopt", {}, {"node": "edge-1", "name": "c", "engine": "docker", "container": "x"}, 201),
    ("DELETE", "/v1/services/{name}", {"name": "c"}, None, 204),
    ("POST", "/v1/images/push", {}, {"image": "oci:/edge-1", "destination": "edge-2"}, 200),
    ("POST", "/v1/users/{user}/events", {"user": "a"}, REPORT, 200),
    ("POST", "/v1/applications", {}, OFFER, 201),
    ("GET", "/v1/applications", {}, None, 200),
    ("POST", "/v1/users/{user}/discovery", {"user": "a"}, {"application": "app"}, 201),
    ("GET", "/v1/users/{user}", {"user": "a"}, None, 200),
    ("GET", "/v1/observation", {}, None, 200),
    ("DELETE", "/v1/users/{user}", {"user": "a"}, None, 204),
    ("DELETE", "/v1/applications/{name}", {"name": "app"}, None, 204),
]


def test_what_is_there_is_answered_as_described(api: Any) -> None:
    checks = [CHECKS.get_one(name) for name in CHECKED if name != "negative_data_rejection"]
    newest = "?"
    for method, path, names, body, status in THERE:
        operation = api[path][method]
        named = {name: newest if value == "?" else value for name, value in names.items()}
        with_body = {"body": body, "media_type": "application/json"} if body is not None else {}
        case = operation.Case(path_parameters=named, **with_body)
        answer = case.call(timeout=30)
        assert answer.status_code == status, f"{method} {path}: {answer.text}"
        case.validate_response(answer, checks=checks)
        if path == "/v1/migrations":
            newest = answer.json()["id"]
        if path.endswith("/events") and method == "GET":
            assert b'"record"' in answer.content.splitlines()[-1]


ASKED: list[tuple[str, str, dict[str, str], Any]] = [
    ("POST", "/v1/nodes/{name}/benchmark", {"name": "edge-1"}, None),
    ("POST", "/v1/services", {}, RUN | {"name": "new"}),
    ("POST", "/v1/services/adopt", {}, {"node": "edge-1", "name": "new", "engine": "docker", "container": "x"}),
    ("GET", "/v1/services/{name}", {"name": "d"}, None),
    ("DELETE", "/v1/services/{name}", {"name": "d"}, None),
    ("POST", "/v1/services/{name}/release", {"name": "d"}, None),
    ("GET", "/v1/services/{name}/logs", {"name": "d"}, None),
    ("POST", "/v1/services/{name}/exec", {"name": "d"}, {"argv": ["true"]}),
    ("POST", "/v1/services/{name}/probe", {"name": "d"}, None),
    ("POST", "/v1/images/push", {}, {"image": "oci:/edge-1", "destination": "edge-2"}),
]
FAILURES = {
    400: BadInput("no"), 422: Refused("no"), 500: StepFailed("no"), 502: ProtocolMismatch("no"), 503: Unreachable("no"),
}  # fmt: skip
BUSY = {409: Conflict("no")}


@pytest.mark.parametrize(("method", "path", "names", "body"), ASKED, ids=lambda one: str(one)[:40])
def test_what_an_agent_fails_with_is_described(
    region_there: LiveController, api: Any, method: str, path: str, names: dict[str, str], body: Any
) -> None:
    """Each error that it may answer with; that it is busy, where it changes something."""
    operation = api[path][method]
    agents = region_there.region.agents.values()
    with region_there.client() as client:
        if all(one.spec.name != "d" for one in client.services()):
            client.run_service("d", "oci:/x", "edge-1")
    with_body = {"body": body, "media_type": "application/json"} if body is not None else {}
    try:
        for status, error in (FAILURES | (BUSY if "409" in operation.definition.raw["responses"] else {})).items():
            for agent in agents:
                agent.fails = error
            case = operation.Case(path_parameters=names, **with_body)
            answer = case.call(timeout=30)
            assert answer.status_code == status, answer.text
            case.validate_response(answer, checks=[CHECKS.get_one("status_code_conformance")])
    finally:
        for agent in agents:
            agent.fails = None


def test_every_answer_is_described_by_more_than_an_empty_schema(api: Any) -> None:
    for path, methods in api.raw_schema["paths"].items():
        for method, operation in methods.items():
            good = {status: one for status, one in operation["responses"].items() if status.startswith("2")}
            assert len(good) == 1, f"{method} {path}"
            assert "default" not in operation["responses"], f"{method} {path}: any status would do"
            for status, answer in good.items():
                assert status == "204" or all(one["schema"] for one in answer["content"].values()), f"{method} {path}"
