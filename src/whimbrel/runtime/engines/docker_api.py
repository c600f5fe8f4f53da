"""The part of Docker's HTTP API that is needed here, on its UNIX socket (documented by the Docker Engine API)."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.model.service import ExecResult
from whimbrel.runtime.engines.base import EngineAway

API = "/v1.40"  # Docker 19.03 and newer
QUICK_S = 30.0
PIECE_BYTES = 1 << 20
_FRAME = struct.Struct(">B3xI")


class DockerApi:
    """Each request has a connection of its own: nothing is kept open. `title` is the engine's name, `setting` the one
    of its socket in agent.toml, for whoever reads an error."""

    def __init__(self, socket: Path, title: str = "Docker", setting: str = "docker_socket") -> None:
        self.socket, self._title, self._setting = socket, title, setting

    async def get(self, path: str, **query: str | int) -> Any:
        return await self.call("GET", path, query)

    async def call(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        *,
        timeout_s: float | None = QUICK_S,
    ) -> Any:
        """The decoded answer, None for an empty one. Raises BadInput for what does not exist, Refused otherwise."""
        answer = await self._send(method, path, query, body, timeout_s)
        return msgspec.json.decode(answer) if answer.strip() else None

    async def _send(
        self, method: str, path: str, query: dict[str, Any] | None, body: Any, timeout_s: float | None
    ) -> bytes:
        content = None if body is None else msgspec.json.encode(body)
        try:
            async with self._client(timeout_s) as client:
                answer = await client.request(
                    method, API + path, params=query, content=content, headers={"Content-Type": "application/json"}
                )
        except (httpx.TransportError, OSError) as error:
            raise self._away(error) from error
        if answer.is_error:
            raise _error(self._title, answer.status_code, answer.content)
        return answer.content

    async def download(self, path: str) -> AsyncIterator[bytes]:
        """The answer as it comes, in pieces."""
        try:
            async with self._client(None) as client, client.stream("GET", API + path) as answer:
                if answer.is_error:
                    raise _error(self._title, answer.status_code, await answer.aread())
                async for piece in answer.aiter_bytes(PIECE_BYTES):
                    yield piece
        except (httpx.TransportError, OSError) as error:
            raise self._away(error) from error

    async def upload(self, path: str, pieces: AsyncIterator[bytes]) -> None:
        """A tar archive. Raises Refused with the engine's own reason, which it may give after it said 200."""
        try:
            async with self._client(None) as client:
                headers = {"Content-Type": "application/x-tar"}
                answer = await client.post(API + path, content=pieces, headers=headers)
        except (httpx.TransportError, OSError) as error:
            raise self._away(error) from error
        if answer.is_error:
            raise _error(self._title, answer.status_code, answer.content)
        for line in answer.content.splitlines():
            if b'"error"' in line:
                raise Refused(f"{self._title}: {' '.join(line.decode(errors='replace').split())}")

    def _client(self, timeout_s: float | None) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), verify=False)
        limits = httpx.Timeout(timeout_s, connect=QUICK_S)
        return httpx.AsyncClient(transport=transport, base_url="http://docker", timeout=limits)

    def _away(self, error: Exception) -> EngineAway:
        return EngineAway(
            f"{self._title} does not answer at {self.socket} ({error or type(error).__name__}): start it, or name "
            f"its socket as `{self._setting}` in agent.toml"
        )

    async def exec(self, container: str, argv: tuple[str, ...], *, timeout_s: float, max_bytes: int) -> ExecResult:
        """Run a command inside. Raises Refused after `timeout_s`: the command goes on, its output is not waited for."""
        order = {"Cmd": list(argv), "AttachStdout": True, "AttachStderr": True}
        made = await self.call("POST", f"/containers/{container}/exec", None, order)
        start = {"Detach": False, "Tty": False}
        stream = await self._send("POST", f"/exec/{made['Id']}/start", None, start, timeout_s)
        out, err = demultiplex(stream)
        found = await self.get(f"/exec/{made['Id']}/json")
        return ExecResult(
            exit_code=int(found["ExitCode"] or 0),
            stdout=out[:max_bytes].decode(errors="replace"),
            stderr=err[:max_bytes].decode(errors="replace"),
        )

    async def output(self, container: str) -> bytes:
        """What the container wrote, both streams in order; empty when its log driver keeps nothing."""
        try:
            stream = await self._send("GET", f"/containers/{container}/logs", {"stdout": 1, "stderr": 1}, None, QUICK_S)
        except Refused:
            return b""
        return b"".join(piece for _, piece in _frames(stream))


def demultiplex(stream: bytes) -> tuple[bytes, bytes]:
    """Standard output and standard error out of Docker's framed stream."""
    out, err = bytearray(), bytearray()
    for number, piece in _frames(stream):
        (err if number == 2 else out).extend(piece)
    return bytes(out), bytes(err)


def _frames(stream: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + _FRAME.size <= len(stream):
        number, size = _FRAME.unpack_from(stream, at)
        found.append((number, stream[at + _FRAME.size : at + _FRAME.size + size]))
        at += _FRAME.size + size
    return found


def _error(title: str, status: int, content: bytes) -> WhimbrelError:
    try:
        cause = str(msgspec.json.decode(content)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        cause = content.decode(errors="replace")
    cause = " ".join(cause.split()) or f"status {status}"
    return BadInput(f"{title}: {cause}") if status == 404 else Refused(f"{title}: {cause}")
