"""Folders side by side: everything that must be equal of two trees, and a pair of which one follows the other."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from whimbrel.storage.records import Data, File, Folder, Link, Record, Removed, Special, Stash, Symlink, Zeros
from whimbrel.storage.treecopy import TreeCopy


def facts(root: Path) -> dict[str, object]:
    found: dict[str, object] = {".": _of(root, {}, ".")}
    groups: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        found[str(path.relative_to(root))] = _of(path, groups, str(path.relative_to(root)))
    return found


def _of(path: Path, groups: dict[int, str], name: str) -> tuple[object, ...]:
    status = path.lstat()
    regular = stat.S_ISREG(status.st_mode)
    return (
        status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_mtime_ns,
        path.read_bytes() if regular else os.readlink(path) if path.is_symlink() else None,
        groups.setdefault(status.st_ino, name) if regular else None,
        {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)},
    )  # fmt: skip


class Pair:
    """A folder that changes, and its copy that follows."""

    def __init__(self, path: Path) -> None:
        self.here, self.there = path / "here", path / "there"
        self.here.mkdir()
        self.there.mkdir()
        self.copy = TreeCopy(self.here, self.there)
        self.records: list[Record] = []

    def follow(self, always: tuple[str, ...] = ()) -> list[Record]:
        self.records = []
        self.copy.follow(always=always, on_record=self.records.append)
        return self.records

    def of(self, kind: type[Any]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def content_bytes(self) -> int:
        """What the last `follow` carried of files."""
        return sum(len(record.content) for record in self.of(Data))

    def touched(self) -> list[str]:
        """The paths that the last `follow` did something to, without the folder's own."""
        paths = {record.path for record in self.of((File, Folder, Link, Removed, Special, Stash, Symlink))}
        return sorted(os.fsdecode(path) for path in paths if path)

    def assert_equal(self) -> None:
        assert facts(self.here) == facts(self.there)


__all__ = ["Pair", "Zeros", "facts"]
