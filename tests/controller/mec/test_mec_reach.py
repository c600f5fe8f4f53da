"""No notification goes where the operator did not allow it: hostile addresses against real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading

import httpcore
import pytest
from mec_server import Inbox

from whimbrel.controller.mec import delivery, reach
from whimbrel.controller.mec.delivery import Deliverer
from whimbrel.controller.mec.lanes import AT_ONCE, AT_ONCE_TO_ONE, AT_ONCE_TO_SLOW
from whimbrel.controller.mec.reach import allowed_of, check_callback, check_url, resolved
from whimbrel.controller.mec.waiting import MOST, Budget, Waiting
from whimbrel.model.errors import BadInput, Refused

HERE = ("127.0.0.0/8",)


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
        "http://0.0.0.0:80/",
        "http://[::1]:8077/v1/services",
    ],
)
def test_an_address_outside_is_refused_at_once(url: str) -> None:
    with pytest.raises(Refused, match="not allowed here"):
        check_url(url, allowed_of(HERE, local=False))


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/", "file:///etc/passwd", "unix:/run/x", "http://", "http://127.0.0.1:99999/", "http://[x/",
     "http://u:p@127.0.0.1/", "http://127.0.0.1/a\r\nX: y", "http://127.0.0.1/" + "a" * 3000, "", "127.0.0.1:80",
     "http://10.0.0.1%00.127.0.0.1/", "http://[fe80::1%25eth0]/", "http://\u217027.0.0.1/", "http://127.0.0.1\u3002x/",
     "http://127.0.0.\u212a/", "http://\u00e4.example/", "http://127.0.0.1/\u00e4", "http://a,b/", "http://a\\b/"],
)  # fmt: skip
def test_what_is_no_place_to_post_to_is_refused(url: str) -> None:
    with pytest.raises(BadInput):
        check_url(url, allowed_of(HERE, local=False))


def test_only_a_controller_that_listens_locally_may_reach_its_host_by_default() -> None:
    check_url("http://127.0.0.1:80/", allowed_of(None, local=True))
    with pytest.raises(Refused, match="allowed: nothing"):
        check_url("http://127.0.0.1:80/", allowed_of(None, local=False))
    with pytest.raises(Refused, match="allowed: nothing"):
        check_url("http://app.example/", allowed_of(None, local=False))


@pytest.mark.parametrize("host", ["0", "0x0a000001", "169.254.43518", "a..b", "x" * 64])
async def test_a_name_that_leads_elsewhere_or_nowhere_is_refused_at_once(host: str) -> None:
    """Also one that is a number in disguise; none of these asks a name server."""
    with pytest.raises(Refused, match="not allowed here"):
        await check_callback(f"http://{host}/", allowed_of(["192.0.2.0/24"], local=False))


async def test_a_name_that_leads_where_it_may_is_taken() -> None:
    await check_callback("http://localhost/", allowed_of(["127.0.0.0/8", "::1/128"], local=False))
    await check_callback("http://0177.1/", allowed_of(HERE, local=False))
    await check_callback("http://nowhere.invalid:80/", allowed_of(["nowhere.invalid:80"], local=False))


async def test_a_name_that_nobody_answers_for_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads for it: what else is done in threads goes on, and so do deliveries."""
    answered = threading.Event()

    def silent(*_: object, **__: object) -> list[object]:
        answered.wait(60)
        return []

    monkeypatch.setattr(reach, "RESOLVE_S", 0.2)
    monkeypatch.setattr(reach.socket, "getaddrinfo", silent)
    try:
        asked = (check_callback(f"http://n{n}/", allowed_of(HERE, local=False)) for n in range(40))
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, Refused) and "nobody said within" in str(one) for one in told)
        assert await asyncio.to_thread(lambda: "free") == "free"
        assert await asyncio.get_running_loop().run_in_executor(reach.SENT_TO, lambda: "free") == "free"
    finally:
        answered.set()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "app", "app:0", "app:x", "10.0.0.0/99:80", ":80"])
def test_an_entry_that_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="callbacks"):
        allowed_of([text], local=False)


async def test_what_a_name_resolves_to_counts_when_it_is_connected_to() -> None:
    """`localhost` passes for a name; it leads to an address that is not allowed."""
    elsewhere = allowed_of(["10.0.0.0/8"], local=False)
    check_url("http://localhost:80/", elsewhere)
    with pytest.raises(httpcore.ConnectError, match="where notifications are not allowed to go"):
        await resolved("localhost", 80, elsewhere)
    assert (await resolved("localhost", 80, allowed_of(HERE, local=False))).startswith("127.")
    assert await resolved("localhost", 80, allowed_of(["LOCALHOST:80"], local=False))


async def settle(deliverer: Deliverer) -> None:
    """Until the worker has nothing more to do and ended."""
    while deliverer._outboxes:
        await asyncio.sleep(0.02)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("IDLE_S", 0.05), ("AGAIN_AFTER_S", 0.01), ("TIMEOUT_S", 0.5)):
        monkeypatch.setattr(delivery, name, value)


async def test_nothing_is_connected_to_that_is_not_allowed(inbox: Inbox, brief: None) -> None:
    deliverer = Deliverer(allowed_of(["10.0.0.0/8"], local=False))
    for url in (inbox.url, inbox.url.replace("127.0.0.1", "localhost")):
        deliverer.post("s", url, b"{}")
        await settle(deliverer)
    assert inbox.got == []
    await deliverer.close()


async def test_a_redirection_is_not_followed(inbox: Inbox, brief: None) -> None:
    inbox.status = 307
    deliverer = Deliverer(allowed_of(HERE, local=False))
    deliverer.post("s", f"{inbox.url}/here", b"{}")
    await settle(deliverer)
    assert inbox.paths == ["/here"]
    await deliverer.close()


async def test_a_server_that_fails_is_asked_again_and_one_that_refuses_is_not(inbox: Inbox, brief: None) -> None:
    deliverer = Deliverer(allowed_of(HERE, local=False))
    for status, times in ((503, delivery.ATTEMPTS), (404, 1), (204, 1)):
        inbox.status, inbox.paths = status, []
        deliverer.post("s", f"{inbox.url}/{status}", b"{}")
        await settle(deliverer)
        assert inbox.paths == [f"/{status}"] * times
    await deliverer.close()


async def test_one_that_never_answers_keeps_nobody_else_waiting(inbox: Inbox, brief: None) -> None:
    """It accepts and says nothing; its queue is bounded, the oldest is dropped, others are delivered meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        deliverer = Deliverer(allowed_of(HERE, local=False))
        for number in range(3 * MOST):
            deliverer.post("slow", url, b"%d" % number)
        waiting = deliverer._outboxes["slow"].waiting
        assert len(waiting) == MOST
        assert waiting._items[0][1] == b"%d" % (2 * MOST)
        deliverer.post("quick", inbox.url, b"1")
        while not inbox.got:
            await asyncio.sleep(0.01)
        assert waiting, "the slow one is not done yet"
        await deliverer.close()


def spellings(count: int) -> list[str]:
    """So many names of 127.0.0.2: numbers may begin with zeros. No name server is asked, and each is another name."""
    return [f"0177.0.0.{'0' * number}2" for number in range(1, count + 1)]


@pytest.mark.parametrize("hosts", [["127.0.0.2"] * 3 * AT_ONCE, spellings(3 * AT_ONCE)], ids=["one name", "many names"])
async def test_one_host_that_never_answers_takes_few_connections(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, hosts: list[str]
) -> None:
    """However many subscriptions lead there, by however many names: who subscribed after them is served before any of
    them is given up."""
    monkeypatch.setattr(delivery, "TIMEOUT_S", 3600.0)
    with socket.create_server(("127.0.0.2", 0), backlog=100) as silent:
        silent.setblocking(False)
        deliverer = Deliverer(allowed_of(HERE, local=False))
        try:
            for number, host in enumerate(hosts):
                deliverer.post(f"slow-{number}", f"http://{host}:{silent.getsockname()[1]}/", b"{}")
            there = deliverer._hosts.known
            async with asyncio.timeout(20):
                while "127.0.0.2" not in there or there["127.0.0.2"].users < len(hosts):
                    await asyncio.sleep(0.01)
                deliverer.post("quick", inbox.url, b"1")
                while not inbox.got:
                    await asyncio.sleep(0.01)
            assert list(there) == ["127.0.0.2"] or set(there) == {"127.0.0.1", "127.0.0.2"}
            assert there["127.0.0.2"].users == len(hosts), "none of the slow ones has had its time"
            assert there["127.0.0.2"].turn.locked()
        finally:
            await deliverer.close()


async def test_hosts_that_never_answer_are_not_waited_for_again(
    inbox: Inbox, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More hosts than there are connections: once each has failed, they have a few for all of them together."""
    hosts = [f"127.0.2.{number + 1}" for number in range(AT_ONCE + 10)]
    monkeypatch.setattr(delivery, "ATTEMPTS", 1)
    silent = [socket.create_server((host, 0), backlog=50) for host in hosts]
    deliverer = Deliverer(allowed_of(HERE, local=False))
    try:
        urls = [f"http://{one.getsockname()[0]}:{one.getsockname()[1]}/" for one in silent]
        for host, url in zip(hosts, urls, strict=True):
            deliverer.post(host, url, b"{}")
        await settle(deliverer)
        assert all(deliverer._hosts.known[host].slow for host in hosts)
        monkeypatch.setattr(delivery, "TIMEOUT_S", 3600.0)
        for host, url in zip(hosts, urls, strict=True):
            deliverer.post(host, url, b"{}")
        deliverer.post("quick", inbox.url, b"1")
        while not inbox.got:
            await asyncio.sleep(0.01)
        assert deliverer._hosts.slow.locked()
        assert sum(one.turn._value < AT_ONCE_TO_ONE for one in deliverer._hosts.known.values()) >= AT_ONCE_TO_SLOW
    finally:
        await deliverer.close()
        for one in silent:
            one.close()


async def test_what_waits_is_bounded_in_bytes_too() -> None:
    big = b"x" * (300 << 10)
    queue = Waiting(Budget())
    assert [queue.put("", big) for _ in range(5)] == [True, True, True, False, False]
    assert len(queue) == 3, "a MiB for each"

    budget = Budget(2 << 20)
    many = [Waiting(budget) for _ in range(20)]
    for one in many:
        one.put("", big)
    assert sum(one.bytes for one in many) <= 2 << 20
    small = Waiting(budget)
    for number in range(10):
        small.put("", b"%d" % number)
    assert len(small) == 10, "who has little to be told is not left without by those who have much"
    assert await small.get() == ("", b"0")
    for one in (*many, small):
        one.clear()
    assert budget._left_bytes == 2 << 20
    assert not budget._queues


async def test_an_answer_without_end_is_not_read(brief: None) -> None:
    """Headers, then a body for ever: the notification counts as delivered by its status."""
    with socket.create_server(("127.0.0.1", 0)) as endless:
        ended = threading.Event()

        def flood() -> None:
            connection, _ = endless.accept()
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    while True:
                        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                except OSError:
                    ended.set()

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        deliverer = Deliverer(allowed_of(HERE, local=False))
        deliverer.post("s", f"http://127.0.0.1:{endless.getsockname()[1]}/", b"{}")
        await settle(deliverer)
        assert await asyncio.to_thread(ended.wait, 10), "the connection was not closed"
        thread.join(10)
        await deliverer.close()
