"""A folder into another one on the same node, by the same records that cross between nodes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from pathlib import Path

from whimbrel.storage.blocks import Digester
from whimbrel.storage.records import Record, decode_all, encode
from whimbrel.storage.treesink import TreeSink
from whimbrel.storage.treesource import TreeSource


class TreeCopy:
    """`follow` brings `target` up to what `source` is at that moment; the second time only what changed is written."""

    def __init__(
        self, source: Path, target: Path, *, without: str = "", base: Path | None = None, merged: bool = False
    ) -> None:
        """`without`: a folder in it whose contents are left out. `base` and `merged`: see `TreeSource`, `TreeSink`."""
        digester = Digester(secrets.randbits(64))
        self.source = TreeSource(source, digester, without=without, base=base)
        self.sink = TreeSink(target, digester, merged=merged)

    def follow(self, *, always: Collection[str] = (), on_record: Callable[[Record], object] | None = None) -> None:
        """`always`: paths to look into whatever their times say; `on_record` hears of each step."""

        def hand_over(record: Record) -> None:
            (copy,) = decode_all(b"\x91" + encode(record))
            self.sink.apply([copy])
            if on_record is not None:
                on_record(copy)

        self.source.look(always)
        self.source.send(hand_over)
        self.sink.end_pass()

    def close(self) -> None:
        self.source.close()
        self.sink.close()


def copy_folder(source: Path, target: Path, *, without: str = "") -> None:
    """All of `source`, owners, times and holes too, into the existing folder `target`."""
    copy = TreeCopy(source, target, without=without)
    try:
        copy.follow()
    finally:
        copy.close()
