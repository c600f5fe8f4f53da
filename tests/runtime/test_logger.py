"""Output outlives the agent, follows the service from node to node, and is read in order."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from containers import until

from whimbrel.model.errors import BadInput
from whimbrel.runtime.logger import add_log_segments, open_log, pack_logs, segments, settle, tail
from whimbrel.runtime.runc import process_start_ticks


async def test_what_is_written_arrives_and_the_logger_ends_with_its_writer(tmp_path: Path) -> None:
    pipe = open_log(tmp_path / "logs", "edge-1", now_ns=7)
    os.write(pipe, b"hello\n")
    await until(lambda: tail(tmp_path / "logs", 100) == b"hello\n")
    assert [path.name for path in segments(tmp_path / "logs")] == ["7-edge-1.log"]
    reader = _readers(pipe)
    assert len(reader) == 1
    assert os.stat(f"/proc/{reader[0]}").st_uid == os.getuid()
    assert not settle(tmp_path / "logs", timeout_s=0)
    os.write(pipe, b"x" * 60_000)
    os.close(pipe)
    assert settle(tmp_path / "logs", timeout_s=30)
    assert len(tail(tmp_path / "logs", 1 << 20)) == 60_006
    await until(lambda: process_start_ticks(reader[0]) is None)


def _readers(pipe: int) -> list[int]:
    """Other processes that hold the pipe."""
    inode = os.fstat(pipe).st_ino
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/0"):
        try:
            if os.readlink(entry) == f"pipe:[{inode}]" and int(entry.parts[2]) != os.getpid():
                found.append(int(entry.parts[2]))
        except OSError:
            continue
    return found


def test_tail_goes_over_segments_in_the_order_they_began(tmp_path: Path) -> None:
    assert tail(tmp_path / "none", 10) == b""
    for name, text in {"9-edge-1.log": "one ", "10-edge-2.log": "two ", "100-edge-1.log": "three"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("not ours")
    assert tail(tmp_path, 1000) == b"one two three"
    assert tail(tmp_path, 7) == b"o three"
    assert tail(tmp_path, 3) == b"ree"
    assert tail(tmp_path, 0) == b""


def test_segments_follow_the_service_and_come_back_once(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "1-edge-1.log").write_text("one ")
    add_log_segments(there, pack_logs(here))
    (there / "2-edge-2.log").write_text("two ")
    add_log_segments(here, pack_logs(there))
    assert tail(here, 100) == tail(there, 100).rstrip() + b" " == b"one two "


def test_of_long_output_the_newest_part_crosses(tmp_path: Path) -> None:
    (tmp_path / "1-a.log").write_bytes(b"1" * 100)
    (tmp_path / "2-a.log").write_bytes(b"2" * 100)
    add_log_segments(tmp_path / "there", pack_logs(tmp_path, max_bytes=150))
    assert tail(tmp_path / "there", 1000) == b"1" * 50 + b"2" * 100


@pytest.mark.parametrize(
    "packed",
    [b"\xff", msgspec.msgpack.encode(["list"]), msgspec.msgpack.encode({"../../1-a.log": b"x"}),
     msgspec.msgpack.encode({"1-a.log/x": b"x"}), msgspec.msgpack.encode({".bashrc": b"x"})],
)  # fmt: skip
def test_hostile_segments_are_refused(tmp_path: Path, packed: bytes) -> None:
    with pytest.raises(BadInput):
        add_log_segments(tmp_path / "logs", packed)
    assert list(tmp_path.rglob("*")) == []


def test_segment_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "1-a.log").symlink_to(tmp_path / "secret")
    assert tail(logs, 100) == b""
    add_log_segments(logs, msgspec.msgpack.encode({"1-a.log": b"x"}))
    assert (tmp_path / "secret").read_text() == "secret"
