"""From two looks at a folder to the steps that make a copy follow: what moved need not cross again. Pure.

A file or folder is known by its inode. What has another name now is put aside first (`stashes`, the deepest first)
and placed later, so names may be exchanged or run in a circle. All paths but those of `stashes` are as after the look.
"""

from __future__ import annotations

import stat
from collections.abc import Collection
from dataclasses import dataclass, field

from whimbrel.storage.listing import Difference, Entry, Listing

Identity = tuple[int, int]
NOT_MOVED = -1


@dataclass
class Plan:
    """`removed` can go before anything is placed, `removed_late` is inside of what is. `kept` are to be looked into,
    `moved` too once they are in place (path, ticket); `fresh` are to be made; `links` (path, target) come last."""

    stashes: list[tuple[str, int]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    placed: list[tuple[str, int]] = field(default_factory=list)
    removed_late: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    fresh: set[str] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)


def plan_steps(difference: Difference) -> Plan:
    """`placed` are the changed paths that are no `links`, parents first; each with the ticket of its stash if it moved,
    and in `fresh` if nothing of it is at the destination. `forgotten`: inodes of files that are gone."""
    return _Planner(difference).plan


class _Planner:
    def __init__(self, difference: Difference) -> None:
        self.plan = Plan()
        self._before, self._after = difference.before, difference.after
        self._moved: dict[str, str] = {}  # path before -> path after, folders and files alike
        self._names: dict[Identity, list[str]] = {}
        if any(not self._stayed(path) for path in difference.changed):
            self._names = _names_of({_identity(self._after[path]) for path in difference.changed}, self._before)
        self._first: dict[Identity, str] = {}
        # Folders first: with them everything in them has moved.
        folders = [path for path in difference.changed if stat.S_ISDIR(self._after[path].mode)]
        for path in folders:
            self._place(path)
        for path in difference.changed:
            if not stat.S_ISDIR(self._after[path].mode):
                self._place(path)
        self.plan.placed.sort()
        self.plan.stashes.sort(key=lambda stash: (-stash[0].count("/"), stash[0]))
        self._remove(difference.gone)
        self._forget(difference)

    def _stayed(self, path: str) -> bool:
        old = self._before.get(path)
        return old is not None and _identity(old) == _identity(self._after[path])

    def _now(self, path: str) -> str:
        """Where something is after the moves so far that was at `path` before."""
        above, rest = path, ""
        while above:
            if above in self._moved:
                return self._moved[above] + rest
            above, slash, name = above.rpartition("/")
            rest = slash + name + rest
        return path

    def _place(self, path: str) -> None:
        entry, plan = self._after[path], self.plan
        identity = _identity(entry)
        regular = stat.S_ISREG(entry.mode)
        known = identity in self._first
        if regular and known:
            at_its_place = self._stayed(path) and self._now(path) == path
            if not at_its_place and path != self._first[identity]:
                plan.links.append((path, self._first[identity]))
            return
        if regular:
            self._first[identity] = path
        if self._stayed(path) and self._now(path) == path:
            plan.placed.append((path, NOT_MOVED))
            return
        if not (regular or stat.S_ISDIR(entry.mode)):
            plan.placed.append((path, NOT_MOVED))
            plan.fresh.add(path)
            return
        names = self._names.get(identity, ())
        places = [self._now(name) for name in names]
        if path in places:
            plan.placed.append((path, NOT_MOVED))
            return
        if regular:
            for place in places:
                if (other := self._after.get(place)) is not None and _identity(other) == identity:
                    # A name that stays is the file's place; this one is another name of it.
                    self._first[identity] = place
                    plan.placed.append((place, NOT_MOVED))
                    plan.links.append((path, place))
                    return
        if names:
            ticket = len(plan.stashes)
            plan.stashes.append((names[0], ticket))
            self._moved[names[0]] = path
            plan.placed.append((path, ticket))
        else:
            plan.placed.append((path, NOT_MOVED))
            plan.fresh.add(path)

    def _remove(self, gone: Collection[str]) -> None:
        early = {path for path in gone if self._now(path) == path}
        late = set[str]()
        if self._moved:
            late = {self._now(path) for path in self._before if path not in self._moved and self._now(path) != path}
            late -= self._after.keys()
        self.plan.removed = _outermost(early)
        self.plan.removed_late = _outermost(late)

    def _forget(self, difference: Difference) -> None:
        lost = {
            entry.inode
            for path, entry in self._before.items()
            if stat.S_ISREG(entry.mode) and (path in difference.gone or not self._stayed(path))
        }
        if lost:
            lost -= {entry.inode for entry in self._after.values() if stat.S_ISREG(entry.mode)}
        self.plan.forgotten = lost


def _identity(entry: Entry) -> Identity:
    return entry.inode, stat.S_IFMT(entry.mode)


def _names_of(wanted: set[Identity], listing: Listing) -> dict[Identity, list[str]]:
    names: dict[Identity, list[str]] = {}
    if wanted:
        for path, entry in listing.items():
            if (identity := _identity(entry)) in wanted:
                names.setdefault(identity, []).append(path)
    return names


def _outermost(paths: set[str]) -> list[str]:
    return sorted(path for path in paths if not _has_parent_in(path, paths))


def _has_parent_in(path: str, paths: set[str]) -> bool:
    while (path := path.rpartition("/")[0]) and path not in paths:
        pass
    return bool(path)
