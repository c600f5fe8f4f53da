"""As a chain of CRIU image layers (`staging.layers`), restored by CRIU itself out of the files.

The layers are written here and shipped (tmpfs and rsync, or storage that both nodes mount), or written at the
destination by CRIU's page server. Which of them is decided in `carriers.choose`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from whimbrel.memory.batches import Pages, ReadAhead, merged
from whimbrel.memory.processes import ns_pids_of
from whimbrel.memory.ranges import Ranges
from whimbrel.memory.tracker import ProcessPages, TreeTracker
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.pace import Pace
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.pages import vdso_of
from whimbrel.migrate.staging.layers import PARENT, LayerFiles
from whimbrel.migrate.staging.pageserver import PageServerClient
from whimbrel.migrate.staging.ship import LAYERS, Ship
from whimbrel.migrate.staging.zeros import Zeros, droppable


class Layers(Protocol):
    """Where layers go. `write` returns (pages, bytes that left this node for them)."""

    def write(self, number: int, batches: Iterable[Pages], ns_pids: Collection[int]) -> tuple[int, int]: ...

    def interrupt(self) -> None: ...


class LayersHere:
    """Files below `stage`, shipped afterwards. `pace` is for writing them, where `stage` is not this node's own."""

    def __init__(self, stage: Path, pace: Pace) -> None:
        self._files = LayerFiles(stage / LAYERS, pace)
        self._pace = pace

    def write(self, number: int, batches: Iterable[Pages], ns_pids: Collection[int]) -> tuple[int, int]:
        return self._files.write(number, batches, ns_pids), 0

    def interrupt(self) -> None:
        self._pace.interrupt()


class LayersThere:
    """Straight into the destination's memory, by CRIU's page server; `connect` opens a connection for a layer."""

    def __init__(self, connect: Callable[[int], PageChannel], pace: Pace) -> None:
        self._connect = connect
        self._client = PageServerClient(pace)
        self._pace = pace
        self._channel: PageChannel | None = None

    def write(self, number: int, batches: Iterable[Pages], ns_pids: Collection[int]) -> tuple[int, int]:
        before = self._client.sent_bytes
        channel = self._channel = self._connect(number)
        try:
            pages = self._client.send(channel.sock, batches, ns_pids)
        finally:
            channel.close()
            self._channel = None
        return pages, self._client.sent_bytes - before

    def interrupt(self) -> None:
        self._pace.interrupt()
        if (channel := self._channel) is not None:
            channel.shutdown()


class StagedCarrier:
    """`stage` is the folder that ends up at the destination: ``images`` and, if they are written here, ``layers``."""

    def __init__(self, root_pid: int, stage: Path, layers: Layers, ship: Ship) -> None:
        self._root_pid = root_pid
        self._stage = stage
        self._layers = layers
        self._ship = ship
        self._number = 0
        self._pages_sent = 0
        self._ahead = ReadAhead()
        self._zeros = Zeros()
        self._tracker = TreeTracker(root_pid)

    @property
    def sent_bytes(self) -> int:
        return self._pages_sent

    @property
    def parent_image(self) -> str:
        return ""

    def round(self, number: int) -> Carried:
        written = self._write(self._tracker.scan())
        return written + self._ship_folders([f"{LAYERS}/{self._number}"] if self._layers_are_here else [])

    def dirty_bytes(self) -> int:
        return self._tracker.written_bytes()

    def while_holding(self, held: Callable[[], bool]) -> Carried:
        return Carried()

    def while_dumping(self, dumped: Callable[[], bool]) -> Carried:
        return Carried()

    def last(self, images: Path) -> Carried:
        allowed = droppable(images)
        dirty = self._tracker.scan(final=True)
        return self._write(merged(dirty, self._zeros.outside(allowed, dirty), vdso_of(self._root_pid)), allowed)

    def deliver(self, images: Path) -> Carried:
        self._zeros.settle(images)
        link = images / PARENT
        link.unlink(missing_ok=True)
        link.symlink_to(f"../{LAYERS}/{self._number}")
        names = [images.name] + ([f"{LAYERS}/{self._number}"] if self._layers_are_here else [])
        return self._ship_folders(names)

    def leave_behind(self) -> None:
        """CRIU restores from files, so all of it must be there."""

    def beside_restore(self, over: Callable[[], bool]) -> Carried:
        return Carried()

    def ranges_beside(self) -> dict[int, bytes]:
        return {}

    def ranges_behind(self) -> dict[int, bytes]:
        return {}

    def answer(self, kind: Kind, number: int, payload: bytes) -> bool:
        return False

    def send_behind(self) -> None:
        """Nothing was left."""

    def link_was_cut(self) -> None:
        """Nothing is left to go again."""

    def interrupt(self) -> None:
        self._layers.interrupt()
        self._ship.interrupt()

    def close(self) -> None:
        self._tracker.close()
        self._ahead.close()

    @property
    def _layers_are_here(self) -> bool:
        return isinstance(self._layers, LayersHere)

    def _write(self, dirty: list[ProcessPages], zeros_in: Mapping[int, Ranges] | None = None) -> Carried:
        """A layer; `zeros_in`: pages of zeros are left out there alone."""
        start, zeros = time.monotonic(), self._zeros.count
        self._number += 1
        batches = self._zeros.left_out_of(self._ahead.all_of(dirty), zeros_in)
        pages, sent = self._layers.write(self._number, batches, ns_pids_of(self._root_pid))
        self._pages_sent += sent
        zeros = self._zeros.count - zeros
        took_ms = (time.monotonic() - start) * 1e3
        return Carried(pages=pages + zeros, sent_bytes=sent, zero_pages=zeros, parts_ms=(("dump", took_ms),))

    def _ship_folders(self, names: list[str]) -> Carried:
        if not names:
            return Carried()
        start = time.monotonic()
        sent = self._ship.folders(self._stage, names)
        self._pages_sent += sent
        return Carried(sent_bytes=sent, parts_ms=(("copy", (time.monotonic() - start) * 1e3),))
