"""The process at the source that looks at a service's files and sends what changed, on a connection of its own.

It is a process because looking at thousands of files and digesting large ones would hold up the agent's threads, most
of all in the freeze, where it works beside CRIU's dump. It dies with the agent: its standard input ends.

Forked from the nursery (`nursery_main`); the first line on stdin is a `SendOrder`, each further one a `Command`.
Events go to stdout as JSON lines: ``ready``, ``progress``, ``passed`` (arrived and checked), ``sent`` (on its way),
``failed``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from whimbrel.migrate.filestream import FILES_HELLO, RecordWriter
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.model.errors import WhimbrelError
from whimbrel.storage.blocks import Digester
from whimbrel.storage.openfiles import held_files, mapped_files
from whimbrel.storage.treesource import TreeSource
from whimbrel.storage.watch import Watch

PROGRESS_EVERY_S = 0.5


class CarriedFolder(msgspec.Struct, frozen=True):
    """A folder on this node, and where the container sees it (without leading ``/``). `without`: a folder in it whose
    contents do not cross. `base`: a folder on this node that the destination has a copy of already: of what is the same
    there nothing crosses. `writer`: a process that sees the folder at `inside`; 0: nobody watches what is written."""

    folder: str
    inside: str = ""
    without: str = ""
    base: str = ""
    writer: int = 0


class SendOrder(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    token: str
    folders: tuple[CarriedFolder, ...]
    bandwidth_bps: float = 0.0


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """`what`: ``pass`` while the service runs; ``last`` when it stands still; ``names`` after CRIU's dump, which makes
    names and writes to no file. `pids`: the service's processes."""

    what: str
    pids: tuple[int, ...] = ()


def seed_of(token: str) -> int:
    """Both sides digest with the same seed, which nobody else knows."""
    return int.from_bytes(token.encode()[-8:], "little")


def say(event: str, **fields: object) -> None:
    os.write(1, msgspec.json.encode({"event": event, **fields}) + b"\n")


class Sender:
    def __init__(self, order: SendOrder) -> None:
        digester = Digester(seed_of(order.token))
        self._places = [carried.inside for carried in order.folders]
        self._sources = [
            TreeSource(
                Path(carried.folder),
                digester,
                without=carried.without,
                base=Path(carried.base) if carried.base else None,
                watch=watch_of(carried),
            )
            for carried in order.folders
        ]
        self._channel = PageChannel.connect(order.host, order.port, order.token, number=FILES_HELLO)
        self._writer = RecordWriter(self._channel, order.bandwidth_bps)
        self._passes = 0
        self._mapped: set[str] = set()
        self._told_s = time.monotonic()

    def carry_out(self, command: Command) -> None:
        before = self._channel.sent_bytes
        if command.what == "names":
            for source in self._sources:
                source.look_at_names()
            self._send(0)
        else:
            for source in self._sources:
                source.listen()
            # A store into a shared mapping moves no time stamp, also when the mapping is gone by the end.
            self._mapped |= mapped_files(command.pids)
            held = held_files(command.pids)
            always = by_folder(self._mapped, self._places)
            silent = [None] * len(always) if held is None else by_folder(held, self._places)
            passes = zip(self._sources, always, silent, strict=True)
            self._send(sum(source.look(mapped, open_now) for source, mapped, open_now in passes))
        if command.what != "last":
            self._passes += 1
            self._writer.end_pass(self._passes)
        if command.what == "pass":
            self._channel.expect(Kind.ACK, number=self._passes)
        else:
            self._writer.flush()
        event = "passed" if command.what == "pass" else "sent"
        say(event, passes=self._passes, sent_bytes=self._channel.sent_bytes - before)

    def _send(self, total_bytes: int) -> None:
        done_bytes = 0

        def tell(count: int) -> None:
            nonlocal done_bytes
            done_bytes += count
            now_s = time.monotonic()
            if now_s - self._told_s > PROGRESS_EVERY_S:
                self._told_s = now_s
                say("progress", done_bytes=min(done_bytes, total_bytes), total_bytes=total_bytes)

        self._told_s = time.monotonic()
        for number, source in enumerate(self._sources):
            source.send(self._writer.to(number), tell)


def watch_of(carried: CarriedFolder) -> Watch | None:
    """None where there can be none: then every file is asked about at each pass."""
    with contextlib.suppress(OSError, RuntimeError):  # the latter: no thread
        return Watch(Path(carried.folder), carried.writer, carried.inside) if carried.writer else None
    return None


def by_folder(paths: set[str], places: Sequence[str]) -> list[set[str]]:
    """Paths inside the container, sorted to the folder that the container sees them in; relative to that."""
    found: list[set[str]] = [set() for _ in places]
    for path in paths:
        inside = [place for place in places if not place or path.startswith(f"{place}/")]
        if inside:
            place = max(inside, key=len)
            found[places.index(place)].add(path.removeprefix(f"{place}/"))
    return found


def _commands() -> Iterator[Command]:
    """What comes on standard input; when that ends, this process does at once, whatever it is doing."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(OSError):
            for line in sys.stdin.buffer:
                waiting.put(line)
        os._exit(0)

    threading.Thread(target=read, name="commands", daemon=True).start()
    while True:
        yield msgspec.json.decode(waiting.get(), type=Command)


def main() -> int:
    gc.disable()  # thousands of entries live as long as this process, and no cycles are made
    try:
        sender = Sender(msgspec.json.decode(sys.stdin.buffer.readline(), type=SendOrder))
        say("ready")
        for command in _commands():
            sender.carry_out(command)
    except WhimbrelError as error:
        say("failed", error=str(error), code=error.code)
    except OSError as error:
        say("failed", error=f"files cannot be read at the source: {error}", code="step-failed")
    return 1
