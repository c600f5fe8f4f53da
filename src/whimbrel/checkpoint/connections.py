"""TCP connections as CRIU's images have them: what of each had been sent and was not acknowledged.

Of a connection there is an entry of ``files.img`` (who speaks with whom) and a file ``tcp-stream-INODE.img``: one
entry, then what its program had not read yet, then what its peer had not acknowledged, the last of which had not even
been sent.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.checkpoint.images import COMMON_MAGIC, read_entries
from whimbrel.model.connections import Connection, Unacknowledged
from whimbrel.model.errors import StepFailed

FILES_MAGIC = 0x56303138
TCP_STREAM_MAGIC = 0x51465506
ESTABLISHED, CLOSE_WAIT = 1, 8
"""In the others the end of the stream counts as sent, too."""
AF_INET, AF_INET6 = 2, 10
MAPPED = bytes(10) + b"\xff\xff"
KEPT_BYTES = 1 << 16
"""More is not sent again at once."""
TCPI_OPT_TIMESTAMPS, TCPI_OPT_USEC_TS = 1, 64


def unacknowledged(images: Path, among: Container[Connection]) -> Mapping[Connection, Unacknowledged]:
    """What the peers of these connections had not acknowledged, where there is any. Raises StepFailed for images that
    are none."""
    return dict(_unacknowledged(images, among))


def _unacknowledged(images: Path, among: Container[Connection]) -> Iterator[tuple[Connection, Unacknowledged]]:
    for raw in read_entries(images / "files.img", FILES_MAGIC):
        try:
            sock = pb.FileEntry.FromString(raw).isk
        except DecodeError as error:
            raise StepFailed("files.img is not the CRIU image it should be") from error
        connection = _connection(sock)
        if connection is None or connection not in among or sock.state not in (ESTABLISHED, CLOSE_WAIT):
            continue
        with contextlib.suppress(FileNotFoundError):  # no TCP
            waiting = _stream(images / f"tcp-stream-{sock.ino:x}.img")
            if waiting.contents:
                yield connection, waiting


def _connection(sock: pb.InetSocket) -> Connection | None:
    ends = []
    for words, port in ((sock.src_addr, sock.src_port), (sock.dst_addr, sock.dst_port)):
        address = b"".join(struct.pack("=I", word) for word in words)
        if sock.family == AF_INET6 and address.startswith(MAPPED):
            address = address[len(MAPPED) :]
        if len(address) != 4:
            return None
        ends.append((".".join(map(str, address)), port))
    return Connection(*ends)


def _stream(path: Path) -> Unacknowledged:
    """An image file whose entry is followed by bytes of its own."""
    data = path.read_bytes()
    try:
        common, magic, size = struct.unpack_from("<III", data)
        stream = pb.TcpStream.FromString(data[12 : 12 + size])
    except (struct.error, DecodeError) as error:
        raise StepFailed(f"{path.name} is not the CRIU image it should be") from error
    contents = data[12 + size + stream.inq_len :]
    if (
        (common, magic) != (COMMON_MAGIC, TCP_STREAM_MAGIC)
        or len(data) < 12 + size
        or not (stream.unsq_len <= stream.outq_len <= len(contents))
    ):
        raise StepFailed(f"{path.name} is not the CRIU image it should be")
    # not what was never sent: of an acknowledgement that is ahead of it the kernel takes no notice
    sent_bytes = min(stream.outq_len - stream.unsq_len, KEPT_BYTES)
    return Unacknowledged(
        sequence=(stream.outq_seq - stream.outq_len) % (1 << 32),
        acknowledges=stream.inq_seq,
        window=min(stream.rcv_wnd >> stream.rcv_wscale, 0xFFFF),
        contents=contents[: min(sent_bytes, stream.snd_wnd) if stream.HasField("snd_wnd") else sent_bytes],
        stamp=stream.timestamp if stream.opt_mask & TCPI_OPT_TIMESTAMPS else None,
        stamps_per_s=1_000_000 if stream.opt_mask & TCPI_OPT_USEC_TS else 1_000,
    )
