"""The user of an offloading service: one picture after the other on one connection, each answer judged, and in the end
the service's memory of it all compared with the phone's own.

The pictures and what is in them were made with the image: ``pictures.json`` in the client's files lists them as
``{"enrol": [{"file", "name"}], "pictures": [{"file", "crc", …what the judge needs}], "picture_bytes": N}``; `crc` is
the CRC-32 of the decoded picture, `picture_bytes` its size.
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from whimbrel.client.contract import Figures, Place, Talk, User
from whimbrel.client.loops import read_line
from whimbrel.client.outage import spread

# Whether an answer to a picture is right: (what the list says of the picture, what was found) -> the fault, or "".
Judge = Callable[[dict[str, Any], list[dict[str, Any]]], str]


def checksum_of(crcs: list[int]) -> int:
    """What a service says of pictures with these checksums."""
    return zlib.crc32(b"".join(crc.to_bytes(4, "big") for crc in crcs))


@dataclass
class Ledger:
    """What the service must remember of this session: every picture that it has answered, in order."""

    most_pictures: int
    count: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    crcs: list[int] = field(default_factory=list)

    def enter(self, picture: dict[str, Any], found: list[dict[str, Any]]) -> None:
        self.count += 1
        self.seen.update(item["name"] for item in found)
        self.crcs = [*self.crcs, picture["crc"]][-self.most_pictures :] if self.most_pictures else []

    def faults(self, state: dict[str, Any], known: list[str]) -> list[str]:
        """Where the service's memory is not what it must be."""
        due = {
            "count": self.count,
            "known": sorted(known),
            "seen": dict(self.seen),
            "pictures": len(self.crcs),
            "pictures_crc": checksum_of(self.crcs),
        }
        return [f"{what} is {state.get(what)}, must be {wanted}" for what, wanted in due.items()
                if state.get(what) != wanted]  # fmt: skip


class Offloading(Talk):
    """As fast as the service works: the next picture goes out when the answer to the last one is there."""

    def __init__(self, place: Place, judge: Judge) -> None:
        listed = json.loads(place.file("pictures.json").read_text())
        self.place, self.judge = place, judge
        self.session = os.urandom(4).hex()
        self.pictures: list[dict[str, Any]] = listed["pictures"]
        self.bodies = [place.file(picture["file"]).read_bytes() for picture in self.pictures]
        self.enrolling = [(entry["name"], place.file(entry["file"]).read_bytes()) for entry in listed["enrol"]]
        self.known = [name for name, _ in self.enrolling]
        keep_bytes = int(place.settings.get("KEEP_MB", "100")) << 20
        self.picture_bytes = int(listed["picture_bytes"])
        self.ledger = Ledger(keep_bytes // self.picture_bytes)
        self.first_answers: dict[int, list[dict[str, Any]]] = {}
        self.times: list[tuple[int, float]] = []  # (when answered in ns, processing in ms)
        self.next = 0
        self.unsure: int | None = None
        self.fault = ""

    def call(self, conn: socket.socket, op: str, body: bytes = b"", **more: Any) -> tuple[dict[str, Any], int]:
        head = {"op": op, "session": self.session, "bytes": len(body), **more}
        conn.sendall(json.dumps(head).encode() + b"\n" + body)
        line, when_ns = read_line(conn)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(f"the service says: {answer['error']}")
        return answer, when_ns

    def greet(self, conn: socket.socket) -> None:
        """Enrol at first; after a broken connection find out whether the picture under way was worked on."""
        state, _ = self.call(conn, "state")
        if self.ledger.count == 0 and not state["known"]:
            for name, body in self.enrolling:
                self.call(conn, "enrol", body, name=name)
        if self.unsure is not None and state["count"] == self.ledger.count + 1:
            self.ledger.enter(self.pictures[self.unsure], self.first_answers.get(self.unsure, []))
        elif state["count"] != self.ledger.count and not self.fault:
            self.fault = f"the service remembers {state['count']} pictures of {self.ledger.count}"
        self.unsure = None

    def ask(self, conn: socket.socket, number: int) -> int:
        index = self.next % len(self.pictures)
        self.unsure = index
        answer, when_ns = self.call(conn, "work", self.bodies[index])
        self.unsure = None
        self.next += 1
        found = answer["found"]
        self.ledger.enter(self.pictures[index], found)
        self.times.append((when_ns, float(answer["processing_ms"])))
        self.processing_ns = int(float(answer["processing_ms"]) * 1e6)
        fault = self.judge(self.pictures[index], found)
        if not fault and found != self.first_answers.setdefault(index, found):
            fault = f"{self.pictures[index]['file']} was answered otherwise than the first time"
        if not fault and answer["count"] != self.ledger.count:
            fault = f"the service counts {answer['count']} pictures of {self.ledger.count}"
        if fault:
            self.fault = self.fault or fault
            raise ValueError(fault)
        return when_ns

    def figures(self, conn: socket.socket | None, from_ns: int, to_ns: int) -> Figures:
        if conn is None:
            raise OSError("there is no connection to ask for the state on")
        state, _ = self.call(conn, "state")
        faults = [*filter(None, [self.fault]), *self.ledger.faults(state, self.known)]
        taken = [took_ms for when_ns, took_ms in self.times if when_ns >= from_ns]
        self.times = []
        return {
            "ok": not faults,
            "processing_ms": spread(taken),
            "pictures_remembered": state["pictures"],
            "remembered_bytes": state["pictures"] * self.picture_bytes,
            "seen": state["seen"],
            **({"fault": faults[0]} if faults else {}),
        }


class Phone(User):
    """Its pictures are read when the service answers, not before: an image that was never built is one clear line."""

    judge: Judge

    def prepare(self) -> None:
        self._talk = Offloading(self.place, type(self).judge)

    def talk(self) -> Talk:
        return self._talk
