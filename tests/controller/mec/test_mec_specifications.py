"""schemathesis drives the three specifications against the running controller: no 5xx, no answer they do not have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.routing import APIRoute
from mec_server import SPECS, MecServer

from fakes import FakeRegion
from marks import MANY
from whimbrel.controller.config import load
from whimbrel.controller.parts import Controller

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance"
)
APIS = {
    "mec021-ams-v2.2.1": "/amsi/v1",
    "mec012-rnis-v2.2.1": "/rni/v2",
    "mec013-location-v2.2.1": "/location/v2",
}
EXAMPLES = 12 if MANY else 2
PHASES = "examples,coverage,fuzzing" if MANY else "examples,fuzzing"
NOBODY = "http://127.0.0.1:9/notify"


def amended(name: str) -> dict[str, Any]:
    """The file, with what docs/mec.md says that it lacks."""
    spec: dict[str, Any] = yaml.safe_load((SPECS / f"{name}.yaml").read_text())
    media = "application/json" if "021" in name else "application/problem+json"
    problem = {"description": "", "content": {media: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}}
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            if method in ("post", "put"):  # a body can be malformed, of another type, or about what is not there
                for status in ("400", "406", "415"):
                    operation["responses"].setdefault(status, problem)
                operation["responses"]["415"] = problem
            if method == "get" and path.startswith("/subscriptions"):
                operation["responses"].setdefault("406", problem)
    for parameter in spec["components"].get("parameters", {}).values():
        parameter["schema"].pop("format", None)  # an identifier is part of a path, and no URI
    _lead_home(spec["components"]["schemas"])
    if "021" in name:  # each kind's own word, which the text beside it demands: without it either is taken for both
        for kind in ("MobilityProcedureSubscription", "AdjacentAppInfoSubscription"):
            spec["components"]["schemas"][kind]["properties"]["subscriptionType"] = {"type": "string", "enum": [kind]}
    return spec


def _lead_home(schema: Any) -> None:
    """Generated bodies name an address that is allowed (and where nobody listens), zones that there are: so they are
    accepted, and what is made of them is checked."""
    if isinstance(schema, dict):
        for name, values in (("callbackReference", [NOBODY]), ("notifyURL", [NOBODY]), ("zoneId", ["north", "south"])):
            if schema.get("properties", {}).get(name, {}).get("type") == "string":
                schema["properties"][name]["enum"] = values
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            _lead_home(part)


@pytest.mark.parametrize("name", APIS)
def test_every_answer_is_one_of_the_specification(server: MecServer, tmp_path: Path, name: str) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(amended(name)))
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(spec), "--url", server.url + APIS[name],
        "--checks", CHECKS, "--phases", PHASES, "--max-examples", str(EXAMPLES), "--seed", "5",
        "--continue-on-failure", "--suppress-health-check", "all", "--no-color", "--warnings", "off",
    ]  # fmt: skip
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=200, env=os.environ | {"NO_PROXY": "*"}
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    with server.http() as http:
        assert http.get(APIS[name] + "/nowhere").status_code == 404


NOT_SERVED = {
    "mec021-ams-v2.2.1": {("post", "/uri_provided_by_subscriber")},
    "mec012-rnis-v2.2.1": {("get", "/queries/rab_info"), ("get", "/queries/s1_bearer_info")},
    "mec013-location-v2.2.1": set[tuple[str, str]](),
}
"""docs/mec.md names these, and why."""
METHODS = ("get", "put", "post", "patch", "delete")


def served(tmp_path: Path) -> set[tuple[str, str]]:
    """Methods and paths of the controller's routes, their parameters without names."""
    config = tmp_path / "controller.toml"
    with FakeRegion() as region:
        config.write_text(region.config_text("tcp:127.0.0.1:8077", str(tmp_path / "state")))
    routers = Controller(load(config)).mec.routes()
    return {
        (method.lower(), nameless(route.path))
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }


def nameless(path: str) -> str:
    return re.sub(r"{[^}]*}", "{}", path)


def test_every_operation_of_the_specifications_has_a_route(http: httpx.Client, tmp_path: Path) -> None:
    """An operation that is missing answers 404, which the files list: the runs above would not see it. Of those
    that are not served the route says why."""
    there = served(tmp_path)
    documented = (Path(__file__).parents[3] / "docs/mec.md").read_text().partition("## What is not served")[2]
    for name, prefix in APIS.items():
        paths = yaml.safe_load((SPECS / f"{name}.yaml").read_text())["paths"]
        wanted = {(method, path) for path, operations in paths.items() for method in operations if method in METHODS}
        assert len(wanted) >= 10
        missing = {one for one in wanted if (one[0], nameless(prefix + one[1])) not in there}
        assert not missing, name
        whole = {one for one in wanted if one[0] == "get" and "{" not in one[1]}
        refused = {one for one in whole if http.get(prefix + one[1]).status_code == 404}
        assert refused == {one for one in NOT_SERVED[name] if one[0] == "get"}, name
        for method, path in NOT_SERVED[name]:
            answer = http.request(method, prefix + path)
            assert answer.status_code == 404
            assert "Not Found" not in answer.json()["detail"], "why it is not served"
            assert f"{method.upper()} {path}" in documented
