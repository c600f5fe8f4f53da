from __future__ import annotations

import http.server
import io
import math
import os
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from whimbrel.model.errors import BadInput
from whimbrel.model.radio import HandoverOrder, HandoverRecord, UserEvent, UserNote
from whimbrel.network.overlay import wait_until
from whimbrel.ue.orders import OrderBook, read_lines
from whimbrel.ue.sinks import Lines, Posts

NOTE = UserNote(user="ue-1", unix_s=1.0, elapsed_s=0.5, kind="begin", text="now")


def order(target: str, at_unix_s: float = 0.0, *, user: str = "ue-1", id: str = "") -> HandoverOrder:
    return HandoverOrder(user=user, target=target, at_unix_s=at_unix_s, id=id)


def test_an_order_waits_until_it_is_due() -> None:
    book = OrderBook("ue-1")
    assert book.add(order("gw-2", 100.0)) == ""
    assert book.due(99.9) is None
    assert book.next_unix_s() == 100.0
    assert book.due(100.0) == order("gw-2", 100.0)
    assert book.due(101.0) is None


def test_an_order_with_the_same_id_takes_the_place_of_the_earlier_one() -> None:
    book = OrderBook("ue-1")
    book.add(order("gw-2", 100.0, id="h1"))
    book.add(order("gw-3", 120.0, id="h1"))
    assert book.due(110.0) is None
    assert book.due(120.0) == order("gw-3", 120.0, id="h1")


def test_an_order_that_is_heard_again_is_not_carried_out_again() -> None:
    """It is repeated in each answer for some time; the user may have been handed on meanwhile."""
    book = OrderBook("ue-1")
    for _ in range(2):
        assert book.add(order("gw-2", 100.0, id="h1")) == ""
    assert book.due(100.0) == order("gw-2", 100.0, id="h1")
    book.add(order("gw-1", 101.0, id="h2"))
    assert book.add(order("gw-2", 100.0, id="h1")) == ""
    assert book.due(101.0) == order("gw-1", 101.0, id="h2")
    assert book.due(102.0) is None


def test_of_several_that_are_due_the_latest_counts() -> None:
    book = OrderBook("ue-1")
    for target, at_s in (("gw-2", 3.0), ("gw-3", 5.0), ("gw-1", 4.0)):
        book.add(order(target, at_s))
    assert book.due(10.0) == order("gw-3", 5.0)
    assert book.due(10.0) is None


def test_orders_that_cannot_be_meant_are_not_taken() -> None:
    book = OrderBook("ue-1")
    assert "came to ue-1" in book.add(order("gw-2", user="ue-2"))
    assert "time nan" in book.add(order("gw-2", math.nan))
    for _ in range(100):
        assert book.add(order("gw-2", 1e9)) == ""
    assert "wait already" in book.add(order("gw-2", 1e9))


def test_orders_come_as_lines() -> None:
    reader, writer = os.pipe()
    got: list[HandoverOrder] = []
    troubles: list[str] = []
    thread = threading.Thread(target=read_lines, args=(reader, got.append, troubles.append))
    thread.start()
    os.write(writer, b'{"event": "order", "user": "ue-1", "target": "gw-2"}\nrubbish\n\n{"event": "order", "us')
    os.write(writer, b'er": "ue-1", "target": "gw-3", "at_unix_s": 5}\n')
    os.close(writer)
    thread.join(5)
    os.close(reader)
    assert got == [order("gw-2"), order("gw-3", 5.0)]
    assert len(troubles) == 1
    assert "is no order" in troubles[0]


def test_lines_are_one_object_each_and_a_reader_that_left_is_no_failure() -> None:
    stream = io.BytesIO()
    Lines(stream).tell(NOTE)
    assert msgspec.json.decode(stream.getvalue().splitlines()[0], type=UserEvent) == NOTE
    reader, writer = os.pipe()
    os.close(reader)
    lines = Lines(os.fdopen(writer, "wb", buffering=0))
    lines.tell(NOTE)
    lines.tell(NOTE)


class Controller:
    """A real HTTP server that keeps what it got, and answers what it is told to."""

    def __init__(self, answer: bytes = b'{"orders": []}', status: int = 200, port: int = 0) -> None:
        got = self.got = []
        self.answer, self.status = answer, status
        controller = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                got.append((self.path, msgspec.json.decode(body, type=UserEvent)))
                self.send_response(controller.status)
                self.send_header("content-length", str(len(controller.answer)))
                self.end_headers()
                self.wfile.write(controller.answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.close()


def test_reports_are_posted_and_orders_come_back(controller: Controller) -> None:
    controller.answer = msgspec.json.encode({"orders": [order("gw-2", id="7")]})
    got: list[HandoverOrder] = []
    posts = Posts(f"tcp:127.0.0.1:{controller.port}", "ue-1", got.append, print)
    posts.tell(NOTE)
    assert wait_until(lambda: bool(got))
    posts.close()
    assert got == [order("gw-2", id="7")]
    assert controller.got == [("/v1/users/ue-1/events", NOTE)]


def test_a_url_is_taken_as_it_is(controller: Controller) -> None:
    posts = Posts(f"http://127.0.0.1:{controller.port}/somewhere", "ue-1", print, print)
    posts.tell(NOTE)
    assert wait_until(lambda: bool(controller.got))
    posts.close()
    assert controller.got[0][0] == "/somewhere"


@pytest.mark.parametrize(("status", "answer"), [(500, b""), (200, b"no json"), (404, b"{}")])
def test_a_controller_that_takes_nothing_is_told_once_and_holds_nobody_up(
    controller: Controller, status: int, answer: bytes
) -> None:
    controller.status, controller.answer = status, answer
    told: list[str] = []
    posts = Posts(f"tcp:127.0.0.1:{controller.port}", "ue-1", print, told.append)
    for _ in range(3):
        posts.tell(NOTE)
    assert wait_until(lambda: posts.dropped == 3, 10)
    assert len(told) == 1
    assert "takes no reports" in told[0]
    controller.status, controller.answer = 200, b""
    posts.tell(NOTE)
    assert wait_until(lambda: posts.taken == 1, 5), "it is tried again"
    posts.close()


def test_a_handover_that_met_a_restarting_controller_is_told_later(controller: Controller) -> None:
    controller.status = 503
    told: list[str] = []
    posts = Posts(f"tcp:127.0.0.1:{controller.port}", "ue-1", print, told.append)
    record = HandoverRecord(user="ue-1", source="gw-1", target="gw-2", reason="ordered", unix_s=1.0, elapsed_s=1.0,
                            interruption_ms=500.0)  # fmt: skip
    posts.tell(record)
    assert wait_until(lambda: bool(told), 10)
    controller.got.clear()
    controller.status = 200
    posts.tell(NOTE)
    assert wait_until(lambda: posts.taken == 2, 10)
    posts.close()
    assert [event for _, event in controller.got] == [NOTE, record]
    assert posts.dropped == 0


def test_with_nobody_there_the_newest_reports_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told: list[str] = []
    posts = Posts(f"tcp:127.0.0.1:{port}", "ue-1", print, told.append)
    for _ in range(500):
        posts.tell(NOTE)
    assert wait_until(lambda: bool(told))
    assert posts.dropped > 400
    back = Controller(port=port)
    assert wait_until(lambda: posts.taken > 0, 10)
    back.close()
    posts.close()


@pytest.mark.parametrize("address", ["", "gw", "unix:relative", "tcp:nowhere", "ftp://a/b", "http://"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="is no place to report to"):
        Posts(address, "ue-1", print, print)
