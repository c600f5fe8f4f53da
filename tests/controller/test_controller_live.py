"""The region as it is watched: the picture, the stream of what changes, the log."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace
from planning_people import report

from fakes import FakeRegion
from live_controller import LiveController, wait_until
from whimbrel.controller.client import ControllerClient
from whimbrel.controller.http.pages import mount_pages
from whimbrel.controller.live import marks
from whimbrel.controller.live.news import QUEUE_EVENTS, News
from whimbrel.controller.live.views import Kind, Level, LogEntry, UserMark
from whimbrel.controller.live.watch import FRESH_S
from whimbrel.controller.planning.users import UserState
from whimbrel.model.radio import HandoverRecord, UserReport


@pytest.fixture
def http(live: LiveController, region: FakeRegion) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(live.socket), verify=False)
    with httpx.Client(transport=transport, base_url="http://controller", timeout=30) as http:
        yield http


class Listener:
    """Reads an event stream in a thread; `wait` for what is wanted, in the order told."""

    def __init__(self, live: LiveController, last_id: int | None = None) -> None:
        self._told: queue.Queue[tuple[int, str, Any]] = queue.Queue()
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(live.socket), verify=False), base_url="http://controller"
        )
        self._headers = {} if last_id is None else {"Last-Event-ID": str(last_id)}
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _read(self) -> None:
        try:
            with self._http.stream("GET", "/v1/events", headers=self._headers, timeout=30) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                event: dict[str, str] = {}
                for line in response.iter_lines():
                    if line:
                        name, _, value = line.partition(": ")
                        event[name] = value
                    elif "event" in event:
                        self._told.put((int(event["id"]), event["event"], json.loads(event["data"])))
                        event = {}
        except (httpx.HTTPError, OSError):
            pass

    def next(self, timeout_s: float = 30.0) -> tuple[int, str, Any]:
        return self._told.get(timeout=timeout_s)

    def wait(self, wanted: str, which: Any = lambda data: True, timeout_s: float = 30.0) -> tuple[int, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            number, event, data = self.next(max(0.1, deadline - time.monotonic()))
            if event == wanted and which(data):
                return number, data


def user(name: str, **changes: Any) -> UserReport:
    return replace(report(serving="gw-1"), user=name, unix_s=time.time(), **changes)


def test_the_picture_shows_nodes_users_services_and_settings(
    http: httpx.Client, client: ControllerClient, region: FakeRegion
) -> None:
    client.run_service("cam", "oci:/x", "edge-1")
    client.tell(user("walker", x_m=12.5, y_m=-3.0))
    seen = http.get("/v1/region").json()
    assert [node["name"] for node in seen["nodes"]] == ["edge-1", "edge-2", "edge-3", "gw-1"]
    edge = seen["nodes"][0]
    assert edge["up"] is True
    assert edge["services"] == ["cam"]
    assert edge["cpu_percent"] == pytest.approx(100 * 0.25 / 1.5, abs=0.1)
    assert edge["memory_total_bytes"] == 8 << 30
    assert edge["x_m"] is None
    assert seen["base_stations"] == [
        {"name": "gw-1", "gateway": "gw-1", "zone": "north", "x_m": 10.0, "y_m": 20.0, "reach_m": 250.0}
    ]
    gateway = seen["nodes"][3]
    assert (gateway["x_m"], gateway["y_m"]) == (10.0, 20.0)
    (shown,) = [one for one in seen["users"] if one["name"] == "walker"]
    assert (shown["x_m"], shown["y_m"], shown["serving"], shown["state"]) == (12.5, -3.0, "gw-1", "connected")
    assert shown["delay_ms"] == 5.0
    assert abs(shown["seen_unix_s"] - time.time()) < 10
    (service,) = seen["services"]
    assert (service["name"], service["node"], service["engine"]) == ("cam", "edge-1", "runc")
    assert service["address"].startswith("10.77.")
    assert seen["migrations"] == []
    assert seen["decisions"] == []
    assert "auto" in seen["settings"]["strategies"]


def test_a_node_that_does_not_answer_keeps_no_picture_waiting(
    live: LiveController, http: httpx.Client, region: FakeRegion
) -> None:
    """The last one is told; that the node is silent is seen once its time is over."""

    def edge_3(seen: dict[str, Any]) -> bool:
        return bool(next(one["up"] for one in seen["nodes"] if one["name"] == "edge-3"))

    wait_until(lambda: edge_3(http.get("/v1/region").json()), "the node is up")
    region.agents["edge-3"].silent = True
    time.sleep(FRESH_S + 0.2)
    assert edge_3(http.get("/v1/region").json()), "the node's time is not over when the picture is there"
    wait_until(lambda: not edge_3(http.get("/v1/region").json()), "it is seen that the node is silent")
    region.agents["edge-3"].silent = False
    wait_until(lambda: edge_3(http.get("/v1/region").json()), "the node is up again")


def test_a_user_of_whom_only_the_network_tells_is_nowhere() -> None:
    """The radio network's service does not say where users are."""
    state = UserState(name="u", report=user("u", x_m=math.nan, y_m=math.inf), heard_s=1.0)
    shown = marks.user_mark(state, None, 2.0, 1000.0)
    assert (shown.x_m, shown.y_m) == (None, None)
    assert msgspec.json.decode(msgspec.json.encode(shown), type=UserMark) == shown


def test_a_listener_is_told_of_a_migration_from_its_start_to_its_end(
    live: LiveController, client: ControllerClient, region: FakeRegion
) -> None:
    client.run_service("cam", "oci:/x", "edge-1")
    region.go.clear()
    with Listener(live) as listener:
        _, first, picture = listener.next()
        assert first == "region"
        assert [one["name"] for one in picture["services"]] == ["cam"]
        started = client.start_migration("cam", "edge-2")
        _, begun = listener.wait("migration")
        assert begun["record"]["id"] == started.id
        assert begun["record"]["outcome"] == "running"
        listener.wait("migration", lambda data: data.get("progress", {}).get("phase") == "rounds")
        assert [one["id"] for one in client_region(live)["migrations"]] == [started.id]
        region.go.set()
        _, ended = listener.wait("migration", lambda data: "record" in data)
        assert ended["record"]["outcome"] == "done"
        assert ended["record"]["freeze_ms"] == 45.5
        _, line = listener.wait("log", lambda data: "is done" in data["text"])
        assert (line["kind"], line["service"], line["node"]) == ("migration", "cam", "edge-2")
        _, services = listener.wait("services", lambda data: data and data[0]["node"] == "edge-2")
        assert services[0]["name"] == "cam"


def client_region(live: LiveController) -> Any:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(live.socket), verify=False), base_url="http://controller"
    ) as http:
        return http.get("/v1/region").json()


def test_users_come_together_at_most_four_times_a_second(live: LiveController, client: ControllerClient) -> None:
    with Listener(live) as listener:
        listener.wait("region")
        begun_s = time.monotonic()
        for step in range(60):
            client.tell(user("runner", x_m=float(step)))
        told = []
        while not told or told[-1]["x_m"] != 59.0:
            _, users = listener.wait("users")
            told += [one for one in users if one["name"] == "runner"]
        took_s = time.monotonic() - begun_s
        assert len(told) <= 4 * took_s + 2
        client.tell(
            HandoverRecord(
                user="runner", source="gw-1", target="gw-2", reason="stronger", unix_s=time.time(), elapsed_s=2.0,
                interruption_ms=31.0,
            )
        )  # fmt: skip
        _, line = listener.wait("log", lambda data: data["kind"] == "handover")
        assert line["user"] == "runner"
        assert "31 ms" in line["text"]
        assert (line["cell"], line["x_m"]) == ("gw-2", 59.0)


def test_a_user_that_reports_no_more_is_gone(live: LiveController, client: ControllerClient) -> None:
    with Listener(live) as listener:
        client.tell(user("leaver"))
        _, gone = listener.wait("gone", lambda data: "leaver" in data)
        assert gone
        assert "leaver" not in [one["name"] for one in client_region(live)["users"]]


def test_a_node_that_is_lost_is_told_and_logged(live: LiveController, region: FakeRegion) -> None:
    with Listener(live) as listener:
        listener.wait("region")
        region.down("edge-3")
        _, line = listener.wait("log", lambda data: data["node"] == "edge-3")
        assert line["level"] == "error"
        down = lambda data: any(node["name"] == "edge-3" and not node["up"] for node in data)  # noqa: E731
        listener.wait("nodes", down)
        region.up("edge-3")
        listener.wait("log", lambda data: data["text"] == "node edge-3 is connected")


def test_last_event_id_resumes_the_log(live: LiveController, client: ControllerClient) -> None:
    with Listener(live) as listener:
        client.run_service("one", "oci:/x", "edge-1")
        number, _ = listener.wait("log", lambda data: data["service"] == "one")
    client.run_service("two", "oci:/x", "edge-1")
    client.run_service("three", "oci:/x", "edge-2")
    with Listener(live, last_id=number) as again:
        assert again.next()[1] == "region"
        missed = [again.next(), again.next()]
        assert [event for _, event, _ in missed] == ["log", "log"]
        assert [data["service"] for _, _, data in missed] == ["two", "three"]
        assert all(one > number for one, _, _ in missed)


def test_the_log_comes_in_pages(http: httpx.Client, client: ControllerClient) -> None:
    for number in range(5):
        client.run_service(f"s{number}", "oci:/x", "edge-1")
    first = http.get("/v1/log", params={"limit": 2})
    assert [entry["service"] for entry in first.json()] == ["s4", "s3"]
    second = http.get(first.links["next"]["url"])
    assert [entry["service"] for entry in second.json()] == ["s2", "s1"]
    ids = [entry["id"] for entry in first.json() + second.json()]
    assert ids == sorted(ids, reverse=True)


def test_a_stream_ends_when_the_controller_stops(live: LiveController, region: FakeRegion) -> None:
    with Listener(live) as listener:
        listener.wait("region")
        assert live.terminate() == 0
    live.start()


def entry(text: str) -> LogEntry:
    return LogEntry(unix_s=1.0, level=Level.INFO, kind=Kind.NODE, text=text)


async def test_a_listener_that_takes_nothing_is_hung_up_on() -> None:
    news = News()

    async def picture() -> dict[str, int]:
        return {}

    stream = news.follow(picture, None)
    assert (await anext(stream)).startswith(b"retry")
    assert b"event: region" in await anext(stream)
    for number in range(QUEUE_EVENTS + 1):
        news.log(entry(str(number)))
    assert [text async for text in stream] == []
    assert news.listeners == 0


async def test_what_happens_while_the_picture_is_made_comes_after_it_and_once() -> None:
    news = News()
    news.log(entry("before"))

    async def picture() -> dict[str, int]:
        news.log(entry("meanwhile"))
        return {}

    stream = news.follow(picture, 0)
    texts = [await anext(stream) for _ in range(4)]
    assert [b"event: region" in text for text in texts] == [False, True, False, False]
    assert b"before" in texts[2]
    assert b"meanwhile" in texts[3]
    await stream.aclose()  # type: ignore[attr-defined]


async def test_pages_leave_the_api_its_paths(tmp_path: Path) -> None:
    from fastapi import FastAPI

    (tmp_path / "index.html").write_text("<h1>map</h1>")
    (tmp_path / "app.js").write_text("export {}")
    app = FastAPI()

    @app.post("/v1/thing")
    async def thing() -> dict[str, int]:
        return {}

    mount_pages(app, tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        index = await http.get("/")
        assert "<h1>map</h1>" in index.text
        policy = index.headers["content-security-policy"].split("; ")
        assert "default-src 'none'" in policy, "what is not named is not loaded"
        assert {f"{what}-src 'self'" for what in ("script", "style", "img", "connect", "worker")} < set(policy)
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in " ".join(policy)
        assert (await http.get("/app.js")).status_code == 200
        assert (await http.get("/v1/thing")).status_code == 405
        assert (await http.get("/v1/nothing")).status_code == 404
        assert (await http.get("/..%2fapp.py")).status_code == 404
