"""Typed calls over one TCP connection: length-prefixed msgpack frames, many calls in flight.

Frame: 4 bytes big-endian length, then a msgpack array. The first frame each way is the header: whose protocols
differ part at once. What a node can do is told by its capabilities (`model.node`).

    [HELLO, protocol, version]                both sides, first
    [CALL, id, body]      caller -> agent     body: msgpack of the call struct
    [EVENT, id, body]     agent -> caller     body: msgpack of a Progress
    [REPLY, id, body]     agent -> caller
    [ERROR, id, code, message]
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from whimbrel import __version__
from whimbrel.model.errors import ProtocolMismatch, Unreachable, WhimbrelError, error_from_wire
from whimbrel.model.migration import Progress
from whimbrel.wire.calls import AnyCall, Call

PROTOCOL = 2
MAX_FRAME_BYTES = 64 << 20
HELLO, CALL, EVENT, REPLY, ERROR = range(5)

log = structlog.get_logger()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_decode_call: Callable[[bytes], Call] = msgspec.msgpack.Decoder(AnyCall).decode

EmitEvent = Callable[[Progress], None]
Handler = Callable[[Any, EmitEvent], Awaitable[Any]]


async def read_frame(reader: asyncio.StreamReader) -> list[Any]:
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    if length > MAX_FRAME_BYTES:
        raise ProtocolMismatch(f"a frame of {length} bytes was announced; the other side does not speak our protocol")
    frame = _decode(await reader.readexactly(length))
    if not isinstance(frame, list) or not frame:
        raise ProtocolMismatch("a frame is not of our protocol's form")
    return frame


def write_frame(writer: asyncio.StreamWriter, *items: Any) -> None:
    body = _encode(items)
    writer.write(struct.pack("!I", len(body)) + body)


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Exchange headers; raises ProtocolMismatch when the protocols differ."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that vanished says no goodbye: let the kernel find out, within about ten seconds.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)
    write_frame(writer, HELLO, PROTOCOL, __version__)
    kind, *header = await read_frame(reader)
    if kind != HELLO or len(header) < 2:
        raise ProtocolMismatch("the other side does not begin with our protocol's header: is it an agent of Whimbrel?")
    protocol, version, *_ = header
    if protocol != PROTOCOL:
        raise ProtocolMismatch(
            f"the other side speaks protocol {protocol} (Whimbrel {version}), this side {PROTOCOL} "
            f"(Whimbrel {__version__}): install the same version on both"
        )


class RpcServer:
    """Answers calls. `handlers` maps a call's class to ``async (call, emit) -> reply``."""

    def __init__(self, handlers: dict[type[Call], Handler]) -> None:
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (useful with 0)."""
        self._server = await asyncio.start_server(self._serve, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        calls: set[asyncio.Task[None]] = set()
        try:
            await _greet(reader, writer)
            while True:
                kind, call_id, body = await read_frame(reader)
                if kind != CALL:
                    raise ProtocolMismatch(f"frame kind {kind} where a call was due")
                answer = asyncio.create_task(self._answer(writer, call_id, body))
                calls.add(answer)
                answer.add_done_callback(calls.discard)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass  # the caller left; what it started goes on, it can ask for the outcome later
        except (WhimbrelError, ValueError, msgspec.DecodeError) as error:
            log.warning("connection refused", error=str(error))
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, call_id: int, body: bytes) -> None:
        def emit(event: Progress) -> None:
            if not writer.is_closing():
                write_frame(writer, EVENT, call_id, _encode(event))

        try:
            call = _decode_call(body)
            reply = await self._handlers[type(call)](call, emit)
            frame: tuple[Any, ...] = (REPLY, call_id, _encode(reply))
        except WhimbrelError as error:
            frame = (ERROR, call_id, error.code, str(error))
        except KeyError as error:
            frame = (ERROR, call_id, "refused", f"this agent does not answer {error}")
        except msgspec.ValidationError as error:
            frame = (ERROR, call_id, "protocol-mismatch", f"malformed call: {error}")
        except Exception as error:
            log.exception("a call failed unexpectedly")
            frame = (ERROR, call_id, "error", f"internal error: {type(error).__name__}: {error}")
        if not writer.is_closing():
            write_frame(writer, *frame)


class Peer:
    """A connection to one agent. Connects on first use and again after a loss."""

    def __init__(self, name: str, host: str, port: int, *, connect_timeout_s: float = 2.0) -> None:
        self.name = name
        self._address = (host, port)
        self._timeout_s = connect_timeout_s
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[bytes], EmitEvent | None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Peer:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        async with self._lock:
            if self._writer is not None and not self._writer.is_closing():
                return
            host, port = self._address
            try:
                async with asyncio.timeout(self._timeout_s):
                    reader, writer = await asyncio.open_connection(host, port)
                    await _greet(reader, writer)
            except ProtocolMismatch as error:
                raise ProtocolMismatch(f"{self.name} at {host}:{port}: {error}") from error
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                raise Unreachable(
                    f"the agent of {self.name} at {host}:{port} does not answer ({type(error).__name__}): "
                    "is it running (`whimbrel agent`), and is the path to it open?"
                ) from error
            self._writer = writer
            self._reading = asyncio.create_task(self._read(reader, writer))

    async def wait_lost(self) -> None:
        """Return when the present connection is gone; at once when there is none."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind, call_id, *rest = await read_frame(reader)
                future, on_event = self._waiting.get(call_id, (None, None))
                if future is None or future.done():
                    continue
                if kind == EVENT:
                    if on_event is not None:
                        on_event(msgspec.msgpack.decode(rest[0], type=Progress))
                elif kind == REPLY:
                    future.set_result(rest[0])
                elif kind == ERROR:
                    future.set_exception(error_from_wire(rest[0], rest[1]))
        except (asyncio.IncompleteReadError, OSError, WhimbrelError, ValueError):
            pass  # OSError: reset, timed out, or no route any more
        finally:
            writer.close()
            for future, _ in self._waiting.values():
                if not future.done():
                    future.set_exception(Unreachable(f"the connection to the agent of {self.name} broke"))

    async def call(self, call: Call, *, timeout_s: float | None = 30.0, on_event: EmitEvent | None = None) -> Any:
        """Send a call, wait for its reply (of type ``call.reply``). Raises what the agent raised, or Unreachable."""
        await self.connect()
        assert self._writer is not None
        call_id = next(self._ids)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = (future, on_event)
        try:
            write_frame(self._writer, CALL, call_id, _encode(call))
            async with asyncio.timeout(timeout_s):
                body = await future
        except TimeoutError as error:
            raise Unreachable(
                f"the agent of {self.name} did not answer within {timeout_s:g} s: it hangs or its link is dead; "
                "look at its log, restart it, try again"
            ) from error
        finally:
            self._waiting.pop(call_id, None)
        return msgspec.msgpack.decode(body, type=call.reply)
