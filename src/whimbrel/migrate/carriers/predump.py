"""The papers' own way, where the kernel tracks soft-dirty bits: CRIU's ``pre-dump`` writes each layer by itself.

Everything else is as in `staged`; there our tracker stands in for the bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.checkpoint.images import pagemap_pids, present_pages
from whimbrel.checkpoint.swrk import CriuWorker
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.pagechannel import Kind
from whimbrel.migrate.staging.ship import LAYERS, Ship


class PreDumpCarrier:
    """`stage` is the folder that ends up at the destination; the final dump must name `parent_image` as its parent."""

    def __init__(self, root_pid: int, stage: Path, run_dir: Path, ship: Ship) -> None:
        self._root_pid = root_pid
        self._stage = stage
        self._run_dir = run_dir
        self._ship = ship
        self._number = 0
        self.sent_bytes = 0

    @property
    def parent_image(self) -> str:
        """As CRIU's ``prev-images-dir`` wants it: relative to the folder of the images; empty before any round."""
        return f"../{LAYERS}/{self._number}" if self._number else ""

    def round(self, number: int) -> Carried:
        start = time.monotonic()
        self._number += 1
        layer = self._stage / LAYERS / str(self._number)
        layer.mkdir(parents=True)
        self._pre_dump(layer)
        pages = sum(present_pages(layer, ns_pid) for ns_pid in pagemap_pids(layer))
        dumped_s = time.monotonic()
        sent = self._ship_folders([f"{LAYERS}/{self._number}"])
        parts = (("dump", (dumped_s - start) * 1e3), ("copy", (time.monotonic() - dumped_s) * 1e3))
        return Carried(pages=pages, sent_bytes=sent, parts_ms=parts)

    def dirty_bytes(self) -> None:
        """Only CRIU's next dump tells."""

    def while_holding(self, held: Callable[[], bool]) -> Carried:
        return Carried()

    def while_dumping(self, dumped: Callable[[], bool]) -> Carried:
        return Carried()

    def last(self, images: Path) -> Carried:
        """CRIU wrote the last pages with its images."""
        return Carried(pages=sum(present_pages(images, ns_pid) for ns_pid in pagemap_pids(images)))

    def deliver(self, images: Path) -> Carried:
        start = time.monotonic()
        sent = self._ship_folders([images.name])
        return Carried(sent_bytes=sent, parts_ms=(("copy", (time.monotonic() - start) * 1e3),))

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
        self._ship.interrupt()

    def close(self) -> None:
        """Nothing is held between two rounds."""

    def _pre_dump(self, layer: Path) -> None:
        layer_fd = os.open(layer, os.O_RDONLY | os.O_DIRECTORY)
        try:
            worker = CriuWorker(
                netns=Path(f"/proc/{self._root_pid}/ns/net"), run_dir=self._run_dir, pass_fds=[layer_fd]
            )
            try:
                opts = pb.Options(
                    images_dir_fd=layer_fd, pid=self._root_pid, track_mem=True, log_level=1, log_file="predump.log",
                    manage_cgroups_mode=pb.CG_IGNORE,
                )  # fmt: skip
                if self._number > 1:
                    opts.parent_img = f"../{self._number - 1}"
                worker.pre_dump(opts)
            finally:
                worker.kill()
        finally:
            os.close(layer_fd)

    def _ship_folders(self, names: list[str]) -> int:
        sent = self._ship.folders(self._stage, names)
        self.sent_bytes += sent
        return sent
