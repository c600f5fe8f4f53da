"""The files of a service: all of them once while it runs, then only what changed."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path

from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.runtime.moving import FileRoot
from whimbrel.storage.archive import pack
from whimbrel.storage.listing import Listing, batches, changed, differing, mapped_files, snapshot

CLOCK_TICK_NS = 20_000_000


@dataclass
class FileSync:
    """The folders that follow the service: all of them once while it runs, then only what changed."""

    roots: tuple[FileRoot, ...]
    seen: list[Listing] = field(default_factory=list)
    _mapped: set[str] = field(default_factory=set)
    _racy: list[set[str]] = field(default_factory=list)

    def send(self, channel: PageChannel, pids: list[int]) -> int:
        """Send what changed since the last call (the first time: all). Returns the bytes of the archives."""
        total = 0
        first = not self.seen
        # A store into a shared mapping moves no time stamp, also when the mapping is gone by the end.
        self._mapped |= mapped_files(pids)
        for number, root in enumerate(self.roots):
            now_ns = time.time_ns()
            now = snapshot(Path(root.path))
            prefix = f"{root.inside.lstrip('/')}/" if root.inside else ""
            always = {path.removeprefix(prefix) for path in self._mapped if path.startswith(prefix)}
            if not first:
                always |= self._racy[number]
                changes = changed(self.seen[number], now, always=always)
            elif root.base:
                changes = differing(Path(root.base), Path(root.path), now)
            else:
                changes = changed({}, now)
            # Time stamps are a tick coarse: what was written just now may be written again within the same one.
            racy = {path for path, entry in now.items() if entry.ctime_ns > now_ns - CLOCK_TICK_NS}
            if first:
                self.seen.append(now)
                self._racy.append(racy)
            else:
                self.seen[number], self._racy[number] = now, racy
            for batch in batches(changes, now):
                archive = io.BytesIO()
                pack(Path(root.path), batch, archive)
                channel.send(Kind.FILES, number, archive.getbuffer())
                total += archive.tell()
        return total
