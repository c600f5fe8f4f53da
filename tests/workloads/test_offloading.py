"""The phone's ledger: an offloading service that forgets or invents is found out."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from whimbrel.client.contract import Place
from whimbrel.workloads.face.client import judge as judge_face
from whimbrel.workloads.objects.client import judge as judge_page
from whimbrel.workloads.objects.client import overlap
from whimbrel.workloads.offload.phone import Ledger, Offloading, checksum_of

PICTURES = [{"file": f"{name}.jpg", "person": name, "crc": crc} for name, crc in (("ann", 11), ("bob", 22))]


class Service:
    """Speaks the protocol on the loopback and names the person whose name the picture's bytes are."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: dict[str, int] = {}
        self.crcs: list[int] = []
        self.known: list[str] = []
        self.lie: dict[str, Any] = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            conn, _ = self.listener.accept()
            threading.Thread(target=self.talk, args=(conn,), daemon=True).start()

    def talk(self, conn: socket.socket) -> None:
        with conn, conn.makefile("rb") as file:
            for line in file:
                head = json.loads(line)
                body = file.read(head["bytes"])
                conn.sendall(json.dumps({**self.answer(head, body.decode()), **self.lie}).encode() + b"\n")

    def answer(self, head: dict[str, Any], name: str) -> dict[str, Any]:
        if head["op"] == "enrol":
            self.known.append(head["name"])
            return {"known": self.known}
        if head["op"] == "work":
            self.count += 1
            self.seen[name] = self.seen.get(name, 0) + 1
            self.crcs = [*self.crcs, next(p["crc"] for p in PICTURES if p["person"] == name)][-3:]
            return {"count": self.count, "found": [{"name": name}], "processing_ms": 1.0}
        return {"count": self.count, "seen": self.seen, "known": self.known, "pictures": len(self.crcs),
                "pictures_crc": checksum_of(self.crcs)}  # fmt: skip


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def talk(service: Service, tmp_path: Path) -> Offloading:
    for picture in PICTURES:
        (tmp_path / picture["file"]).write_text(picture["person"])
    listed = {"enrol": [{"file": "ann.jpg", "name": "ann"}], "pictures": PICTURES, "picture_bytes": 1 << 20}
    (tmp_path / "pictures.json").write_text(json.dumps(listed))
    port = service.listener.getsockname()[1]
    return Offloading(Place("127.0.0.1", port, {"KEEP_MB": "3"}, tmp_path, 5), judge_face)


def talk_to(talk: Offloading) -> socket.socket:
    conn = talk.place.connect()
    talk.greet(conn)
    return conn


def figures(talk: Offloading, conn: socket.socket) -> dict[str, Any]:
    return talk.figures(conn, 0, time.monotonic_ns())


def test_an_honest_service_is_in_order(talk: Offloading) -> None:
    with talk_to(talk) as conn:
        for number in range(7):
            talk.ask(conn, number)
        seen = figures(talk, conn)
    assert seen["ok"], seen
    assert seen["seen"] == {"ann": 4, "bob": 3}
    assert seen["pictures_remembered"] == 3
    assert seen["processing_ms"] == {"p50": 1.0, "p99": 1.0, "max": 1.0}
    assert talk.processing_ns == 1_000_000


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        ({"count": 1}, "counts 1 pictures of 3"),
        ({"found": [{"name": "eve"}]}, "shows ann, not"),
        ({"found": []}, "shows ann, not"),
        ({"error": "out of memory"}, "out of memory"),
    ],
)
def test_a_wrong_answer_is_a_fault(talk: Offloading, service: Service, lie: dict[str, Any], complaint: str) -> None:
    with talk_to(talk) as conn:
        for number in range(2):
            talk.ask(conn, number)
        service.lie = lie
        with pytest.raises(ValueError, match=complaint):
            talk.ask(conn, 2)


def test_the_same_picture_must_be_answered_in_the_same_way(talk: Offloading, service: Service) -> None:
    with talk_to(talk) as conn:
        for number in range(2):
            talk.ask(conn, number)
        service.lie = {"found": [{"name": "ann", "distance": 0.2}]}
        with pytest.raises(ValueError, match="otherwise than the first time"):
            talk.ask(conn, 2)


@pytest.mark.parametrize(
    "loss", [{"count": 2}, {"seen": {"ann": 3}}, {"known": []}, {"pictures": 2}, {"pictures_crc": 5}]
)
def test_a_memory_that_is_not_right_is_found(talk: Offloading, service: Service, loss: dict[str, Any]) -> None:
    with talk_to(talk) as conn:
        for number in range(3):
            talk.ask(conn, number)
        service.lie = loss
        seen = figures(talk, conn)
    assert not seen["ok"]
    assert next(iter(loss)) in seen["fault"]


def test_a_service_that_began_anew_is_found_out_at_the_next_connection(talk: Offloading, service: Service) -> None:
    with talk_to(talk) as conn:
        for number in range(3):
            talk.ask(conn, number)
    service.count, service.seen, service.crcs = 0, {}, []
    with talk_to(talk) as conn:
        seen = figures(talk, conn)
    assert "remembers 0 pictures of 3" in seen["fault"]


@pytest.mark.parametrize("worked", [True, False])
def test_a_picture_under_way_when_the_connection_broke_may_count_or_not(
    talk: Offloading, service: Service, worked: bool
) -> None:
    with talk_to(talk) as conn:
        for number in range(2):
            talk.ask(conn, number)
    talk.unsure = 0  # sent, and then the connection broke
    if worked:
        service.answer({"op": "work"}, "ann")
    with talk_to(talk) as conn:
        talk.ask(conn, 3)
        assert figures(talk, conn)["ok"]


def test_the_ledger_keeps_as_many_pictures_as_the_service() -> None:
    ledger = Ledger(2)
    for picture in (*PICTURES, PICTURES[0]):
        ledger.enter(picture, [{"name": picture["person"]}])
    assert (ledger.count, ledger.crcs, dict(ledger.seen)) == (3, [22, 11], {"ann": 2, "bob": 1})


@pytest.mark.parametrize(
    ("other", "share"), [((0, 0, 10, 10), 1.0), ((5, 0, 15, 10), 1 / 3), ((10, 0, 20, 10), 0.0), ((0, 0, 5, 5), 0.25)]
)
def test_overlap(other: tuple[int, int, int, int], share: float) -> None:
    assert overlap((0, 0, 10, 10), other) == pytest.approx(share)


def test_a_page_of_which_too_little_is_found_is_a_fault() -> None:
    boxes = [[0, y, 100, y + 50] for y in range(0, 400, 100)]
    page = {"file": "page.png", "objects": [{"name": "text", "box": box} for box in boxes]}
    found = [{"name": "text", "box": box} for box in boxes]
    assert judge_page(page, found) == ""
    assert judge_page(page, found[:3]) == "", "no detector finds every one"
    assert "2 of 4" in judge_page(page, found[:2])
    moved = [{"name": "text", "box": [0, y + 30, 100, y + 80]} for y in range(0, 400, 100)]
    assert "4 of 4" in judge_page(page, moved)
    assert "4 of 4" in judge_page(page, [{**item, "name": "table"} for item in found])
