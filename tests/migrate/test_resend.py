"""An answer that nobody has received when its service is frozen is sent again from the new place."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from tests.migrate.conftest import GATEWAYS, Running
from tests.migrate.disturb import DESTINATION, SOURCE, disturb
from tests.migrate.test_strategies import state_is_right
from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.checkpoint.connections import FILES_MAGIC, TCP_STREAM_MAGIC, unacknowledged
from whimbrel.checkpoint.images import COMMON_MAGIC
from whimbrel.lab import commands
from whimbrel.model.connections import Connection, Unacknowledged
from whimbrel.model.errors import StepFailed
from whimbrel.model.migration import Outcome
from whimbrel.network import netns
from whimbrel.network.netlink import NETLINK_SOCK_DIAG, NetlinkSocket, TcpConnection, tcp_connections
from whimbrel.network.resend import LEAST_SEGMENT_BYTES, segments


def _connections(running: Running, node: str) -> list[TcpConnection]:
    diag = netns.call(running.lab.state_dir(node) / "netns" / running.name, lambda: NetlinkSocket(NETLINK_SOCK_DIAG))
    try:
        return tcp_connections(diag)
    finally:
        diag.close()


@contextlib.contextmanager
def _answers_are_lost(running: Running) -> Iterator[None]:
    """What leaves the gateways towards the user vanishes."""
    user = running.user.tcp.getsockname()[0]
    spaces = [commands.node_namespace(gateway, lab_dir=running.lab.directory) for gateway in GATEWAYS]

    def rule(verb: str) -> None:
        command = ["ip", "rule", verb, "to", f"{user}/32", "priority", "10", "blackhole"]
        for space in spaces:
            netns.call(space, lambda: subprocess.run(command, check=True))

    rule("add")
    try:
        yield
    finally:
        rule("del")


def _wait_until_unanswered(running: Running) -> None:
    deadline_s = time.monotonic() + 20
    while not any(each.unacked_segments for each in _connections(running, SOURCE)):
        assert time.monotonic() < deadline_s, "the answer was not lost"
        time.sleep(0.005)


def _retransmissions(running: Running) -> int:
    """How many segments the kernel has sent again on the restored connection."""
    space = running.lab.state_dir(DESTINATION) / "netns" / running.name
    told = netns.call(space, lambda: subprocess.check_output(["ss", "-tinH"], text=True))
    found = re.search(r" retrans:\d+/(\d+)", told)
    return int(found.group(1)) if found else 0


def test_a_lost_answer_is_sent_again_before_the_kernel_would(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel sends it again after a second: by then it must have been acknowledged, so without its doing."""
    count, _ = running.user.ask("count")
    loss = contextlib.ExitStack()
    loss.enter_context(_answers_are_lost(running))
    with loss:
        running.user.tcp.sendall(b"count\n")
        _wait_until_unanswered(running)
        record = disturb(running, "freeze.restore", loss.close)
    assert record.outcome is Outcome.DONE, record.error
    again, _ = (int(word) for word in running.user._buffer.readline().split())
    assert again > count
    deadline_s = time.monotonic() + 20
    while not _connections(running, DESTINATION)[0].acked_bytes:
        assert time.monotonic() < deadline_s, "the answer is not acknowledged"
        time.sleep(0.005)
    assert _retransmissions(running) == 0, "the kernel has done it"
    state_is_right(running)


@pytest.mark.parametrize("damage", [lambda data: data[:10], lambda data: bytes(4) + data[4:], lambda data: data[:20]])
def test_what_was_sent_is_told_and_images_that_are_none_are_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    sock = pb.InetSocket(ino=0xAB, family=2, state=1, src_port=80, dst_port=9, src_addr=[0x0100007F], dst_addr=[2])
    stream = pb.TcpStream(inq_len=2, inq_seq=7, outq_len=6, unsq_len=3, outq_seq=4, opt_mask=0, mss_clamp=1460)
    _write(tmp_path / "files.img", FILES_MAGIC, pb.FileEntry(isk=sock))
    file = tmp_path / "tcp-stream-ab.img"
    _write(file, TCP_STREAM_MAGIC, stream, b"inoutnot")
    connection = Connection(("127.0.0.1", 80), ("2.0.0.0", 9))
    assert unacknowledged(tmp_path, ()) == {}
    (waiting,) = unacknowledged(tmp_path, {connection}).values()
    assert (waiting.sequence, waiting.acknowledges, waiting.contents) == (2**32 - 2, 7, b"out")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StepFailed, match=r"tcp-stream-ab\.img"):
        unacknowledged(tmp_path, {connection})


def _write(path: Path, magic: int, entry: Message, more: bytes = b"") -> None:
    data = entry.SerializePartialToString()
    path.write_bytes(struct.pack("<III", COMMON_MAGIC, magic, len(data)) + data + more)


def test_segments_are_cut_as_the_connection_says() -> None:
    """Numbers wrap; timestamps take room; the clock is that of the connection."""
    contents = bytes(range(256)) * 20
    connection = Connection(("10.0.0.1", 80), ("10.0.0.2", 9))
    waiting = Unacknowledged(2**32 - 1448, 5, 63, contents, stamp=2**32 - 10)
    packets = list(segments(connection, waiting, 1448, age_s=0.025))
    assert b"".join(packet[52:] for packet in packets) == contents
    assert [len(packet) for packet in packets] == [1500, 1500, 1500, 20 + 32 + 5120 - 3 * 1448]
    assert [struct.unpack_from("!I", packet, 24)[0] for packet in packets] == [2**32 - 1448, 0, 1448, 2896]
    assert {struct.unpack_from("!I", packet, 44)[0] for packet in packets} == {15}
    assert len(list(segments(connection, waiting, 0, age_s=0.0))) == -(-len(contents) // LEAST_SEGMENT_BYTES)
