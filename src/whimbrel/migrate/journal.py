"""What a restarted agent must know: one small file per migration, replaced atomically, fsynced, written first.

Source:       preparing -> prepared -> frozen -> deciding -> committed -> arrived -> (file gone)

`deciding` means that GO may be on its way: only the destination knows whether it runs, so the source stays
frozen until it has answered. `committed`: it runs there, but lacks pages still. `arrived`: the source is not needed
any more. What the destination must remember is in `words`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from whimbrel.model.migration import MigrationRecord
from whimbrel.model.node import Endpoint


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """`peer` is the destination; `record` the migration's as it stood at this step."""

    migration: str
    service: str
    side: str
    step: str
    peer: Endpoint
    record: MigrationRecord
    gateways: tuple[Endpoint, ...] = ()


class Journal:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, entry: Entry) -> None:
        path = self._directory / f"{entry.migration}.{entry.side}.json"
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(entry))
            file.flush()
            os.fdatasync(file.fileno())
        temporary.replace(path)

    def clear(self, migration: str, side: str) -> None:
        (self._directory / f"{migration}.{side}.json").unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """What was under way when the agent stopped; a torn file is impossible, an unreadable one is an error. What is
        cleared by its agent while somebody else looks is no entry."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Entry))
        return found
