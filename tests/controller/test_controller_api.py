"""The HTTP API as a foreign client sees it: statuses, problem documents, what is served where."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeRegion, free_port
from live_controller import LiveController
from whimbrel.controller.client import ControllerClient
from whimbrel.controller.listen import parse_listen
from whimbrel.controller.listener import open_listener
from whimbrel.model.errors import BadInput, Conflict, Unreachable


@pytest.fixture
def http(live: LiveController, region: FakeRegion) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(live.socket), verify=False)
    with httpx.Client(transport=transport, base_url="http://controller") as http:
        yield http


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"urn:whimbrel:error:{code}"
    assert body["title"]
    assert body["detail"]
    assert "\n" not in body["detail"]
    return body


RUN = {"node": "edge-1", "name": "demo", "image": "oci:/x"}


def test_problems_of_ours(http: httpx.Client, region: FakeRegion) -> None:
    check_problem(http.get("/v1/services/nope"), 404, "bad-input")
    check_problem(http.get("/v1/migrations/nope"), 404, "bad-input")
    check_problem(http.get("/v1/migrations/nope/events"), 404, "bad-input")
    check_problem(http.post("/v1/services", json={**RUN, "node": "nope"}), 404, "bad-input")
    assert http.post("/v1/services", json=RUN).status_code == 201
    check_problem(http.post("/v1/services", json=RUN), 400, "bad-input")
    region.go.clear()
    started = http.post("/v1/migrations", json={"service": "demo", "destination": "edge-2"})
    assert started.status_code == 202
    assert started.headers["location"] == f"/v1/migrations/{started.json()['id']}"
    check_problem(http.post("/v1/migrations", json={"service": "demo", "destination": "edge-2"}), 409, "conflict")
    region.down("edge-3")
    check_problem(http.post("/v1/services", json={**RUN, "name": "b", "node": "edge-3"}), 503, "unreachable")
    region.go.set()


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/services", {"name": "x"}, "node"),
        ("/v1/services", {**RUN, "colour": "red"}, "colour"),
        ("/v1/services", {**RUN, "memory_limit_bytes": -1}, "memory_limit_bytes"),
        ("/v1/migrations", {"service": "a", "destination": "b", "strategy": "teleport"}, "strategy"),
        ("/v1/migrations", {"service": "a", "destination": "b", "deadline_ms": -1}, "deadline_ms"),
        ("/v1/services/x/exec", {"argv": []}, "argv"),
    ],
)
def test_invalid_requests_name_the_field(http: httpx.Client, path: str, body: dict[str, Any], field: str) -> None:
    found = check_problem(http.post(path, json=body), 400, "bad-input")
    assert field in [error["field"] for error in found["errors"]]
    assert field in found["detail"]


def test_problems_of_the_framework(http: httpx.Client) -> None:
    check_problem(http.get("/v1/nothing"), 404, "bad-input")
    check_problem(http.put("/v1/services"), 405, "bad-input")
    check_problem(
        http.post("/v1/services", content=b"{", headers={"Content-Type": "application/json"}),
        400,
        "bad-input",
    )
    check_problem(http.get("/v1/migrations?limit=x"), 400, "bad-input")


def test_every_route_is_documented(http: httpx.Client) -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    paths = http.get("/openapi.json").json()["paths"]
    assert len(paths) >= 30
    for path, methods in paths.items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in text


def test_the_description_is_a_page_that_needs_nothing_else(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in http.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page.text
    for interface in ("/amsi/v1", "/rni/v2", "/location/v2", "docs/mec.md"):
        assert interface in page.text
    assert "<script" not in page.text
    assert "http://" not in page.text.replace("http://controller", "")
    assert "https://" not in page.text


def test_lists_come_in_pages(http: httpx.Client, client: ControllerClient) -> None:
    client.run_service("paged", "oci:/x", "edge-1")
    made = [client.migrate("paged", to, dry_run=True).id for to in ("edge-2", "edge-3", "edge-2", "edge-3", "edge-2")]
    found, url = [], "/v1/migrations?service=paged&limit=2"
    for _ in range(3):
        page = http.get(url)
        found.append([one["id"] for one in page.json()])
        url = page.links.get("next", {}).get("url", "")
    assert found == [made[:2:-1], made[2:0:-1], made[:1]]
    assert not url
    check_problem(http.get("/v1/migrations?cursor=nothing"), 404, "bad-input")
    check_problem(http.get("/v1/decisions?cursor=nothing"), 404, "bad-input")


def test_a_wrong_method_is_told_the_right_ones(http: httpx.Client) -> None:
    answer = http.put("/v1/services")
    check_problem(answer, 405, "bad-input")
    assert answer.headers["allow"] == "GET, POST"


def test_health(http: httpx.Client) -> None:
    assert http.get("/v1/health").json()["nodes"] == 4


def test_the_socket_is_for_its_owner_only(live: LiveController) -> None:
    assert stat.S_IMODE(os.stat(live.socket).st_mode) == 0o600


# --- where it listens ---------------------------------------------------------------------------------------
def test_a_second_controller_at_the_same_place(live: LiveController, tmp_path: Path, region: FakeRegion) -> None:
    config = tmp_path / "second.toml"
    config.write_text(region.config_text(live.address, str(tmp_path / "state")))
    second = subprocess.run(
        [sys.executable, "-m", "whimbrel", "controller", "--config", str(config)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "somebody listens at" in second.stderr
    assert live.answers()


def test_a_dead_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    open_listener(parse_listen(f"unix:{path}")).close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(Conflict, match="precious"):
        open_listener(parse_listen(f"unix:{path}"))
    assert path.read_text() == "data"


def test_tcp_works_too_and_a_used_port_is_named() -> None:
    listen = parse_listen(f"tcp:127.0.0.1:{free_port()}")
    first = open_listener(listen)
    first.listen()
    with pytest.raises(Conflict, match=f"127.0.0.1:{listen.port}"):
        open_listener(listen)
    first.close()
    with pytest.raises(BadInput, match="cannot listen"):
        open_listener(parse_listen("tcp:192.0.2.1:80"))


@pytest.mark.parametrize("address", ["unix:/nowhere/at/all.sock", f"tcp:127.0.0.1:{free_port()}"], ids=("unix", "tcp"))
def test_no_controller(address: str) -> None:
    with ControllerClient(address) as client, pytest.raises(Unreachable) as caught:
        client.nodes()
    assert address in str(caught.value)
    assert "whimbrel lab up" in str(caught.value)


def test_something_else_answers_there(tmp_path: Path) -> None:
    path = tmp_path / "other"
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print();"
        "sys.stdout.flush(); c,_=s.accept(); c.recv(9999); c.send(b'SSH-2.0-hello\\r\\n'); c.close()"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with ControllerClient(f"unix:{path}") as client, pytest.raises(Unreachable, match="broke"):
        client.nodes()
    other.wait(10)
    other.stdout.close()
