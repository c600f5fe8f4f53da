"""`whimbrel dashboard` in front of a controller that closes a kept connection just as it is used again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from whimbrel.controller.listen import parse_listen
from whimbrel.web.relay import relay

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one request; a second one on the same connection is met by its end (RFC 9112, 9.3.1)."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def ask(socket: Path) -> list[int]:
    server = await asyncio.start_unix_server(once, socket)
    app = relay(parse_listen(f"unix:{socket}"), "the-key")
    transport = httpx.ASGITransport(app=app)
    async with server, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.get("/?key=the-key")).status_code == 303
        said = [(await http.get("/css/base.css")).status_code for _ in range(4)]
        await http.get("/css/base.css")  # leaves a connection that ends with the next request
        said.append((await http.post("/v1/migrations", json={})).status_code)
        return said


def test_what_may_be_asked_twice_is_asked_again_and_nothing_else_is(tmp_path: Path) -> None:
    assert asyncio.run(ask(tmp_path / "controller.sock")) == [200, 200, 200, 200, 502]
