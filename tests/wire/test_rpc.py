"""Who does not speak our protocol is told so, in one line, and gets nothing else."""

from __future__ import annotations

import asyncio
import struct

import msgspec
import pytest

from whimbrel import __version__
from whimbrel.model.errors import ProtocolMismatch, Unreachable
from whimbrel.wire.calls import GetNode
from whimbrel.wire.rpc import CALL, HELLO, MAX_FRAME_BYTES, PROTOCOL, Peer, RpcServer, read_frame


def frame(*items: object) -> bytes:
    body = msgspec.msgpack.encode(items)
    return struct.pack("!I", len(body)) + body


async def error_of_a_peer_that_hears(said: bytes) -> Exception:
    """What a caller raises when the other side begins with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        peer = Peer("edge-2", "127.0.0.1", server.sockets[0].getsockname()[1], connect_timeout_s=5)
        with pytest.raises((ProtocolMismatch, Unreachable)) as raised:
            await peer.call(GetNode())
        await peer.close()
    return raised.value


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            frame(HELLO, PROTOCOL + 1, "9.9.9", ["what", "ever"]),
            f"the other side speaks protocol {PROTOCOL + 1} (Whimbrel 9.9.9), this side {PROTOCOL} (Whimbrel "
            f"{__version__}): install the same version on both",
        ),
        (frame(CALL, 1, b""), "does not begin with our protocol's header"),
        (frame(HELLO), "does not begin with our protocol's header"),
        (frame({"jsonrpc": "2.0"}), "does not begin with our protocol's header"),
        (struct.pack("!I", MAX_FRAME_BYTES + 1), "does not speak our protocol"),
    ],
    ids=["another version", "no header", "half a header", "something else", "a huge frame"],
)
def test_another_protocol_is_refused_by_the_caller(said: bytes, words: str) -> None:
    error = asyncio.run(error_of_a_peer_that_hears(said))
    assert isinstance(error, ProtocolMismatch)
    assert str(error).startswith("edge-2 at 127.0.0.1:")
    assert words in str(error)
    assert "\n" not in str(error)


def test_another_protocol_is_refused_by_the_agent() -> None:
    """It says what it speaks, answers no call, and goes on serving others."""
    answered = []

    async def talk() -> list[object]:
        async def node(call: object, emit: object) -> None:
            answered.append(call)

        server = RpcServer({GetNode: node})
        port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(frame(HELLO, PROTOCOL + 1, "9.9.9") + frame(CALL, 1, msgspec.msgpack.encode(GetNode())))
        header = await read_frame(reader)
        assert await reader.read() == b"", "nothing but the header, then the end"
        writer.close()
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await read_frame(other_reader) == header
        other_writer.close()
        await server.close()
        return header

    assert asyncio.run(talk()) == [HELLO, PROTOCOL, __version__]
    assert not answered
