"""A service's control groups: one folder on every hierarchy of the host, v1, hybrid or v2.

The machine's mounts are only read. runc makes the folders too; making them first is harmless.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import cache
from pathlib import Path

from whimbrel.model.errors import WhimbrelError


@cache
def hierarchies() -> tuple[Path, ...]:
    """Mount points of all control-group hierarchies; each v1 controller once, a v2 mount last."""
    v1: dict[str, Path] = {}
    v2: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, point = before.split(" ")[3:5]
        if root != "/":
            continue
        if kind == "cgroup":
            v1.setdefault(options, Path(point))
        elif kind == "cgroup2" and not v2:
            v2.append(Path(point))
    return (*v1.values(), *v2)


_FREEZER = {"freezer.state": ("THAWED", "FROZEN"), "cgroup.freeze": ("0", "1")}


class Cgroup:
    """The control groups at `path` (absolute, below each hierarchy's mount point)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folders = tuple(hierarchy / path.lstrip("/") for hierarchy in hierarchies())

    def create(self) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            _inherit_cpuset(folder)

    def attach(self, pid: int) -> None:
        """Move a process (all its threads) into every hierarchy, 0 for the caller. Raises WhimbrelError."""
        for file in self.procs_files():
            try:
                file.write_text(str(pid))
            except OSError as error:
                raise WhimbrelError(f"process {pid} cannot enter {file.parent}: {error.strerror}") from error

    def procs_files(self) -> tuple[Path, ...]:
        """Where a process writes ``0`` to move itself in, one file for each hierarchy."""
        return tuple(folder / "cgroup.procs" for folder in self._present())

    def pids(self) -> list[int]:
        """Host process ids inside, from any hierarchy, children of the group included; sorted."""
        found: set[int] = set()
        for folder in self._present():
            for procs in (folder / "cgroup.procs", *folder.glob("**/cgroup.procs")):
                with contextlib.suppress(OSError):
                    found.update(int(line) for line in procs.read_text().split())
        return sorted(found)

    def freeze(self) -> None:
        """No process inside runs on, not even when a tracer lets it go; new ones neither. Does not wait.

        Raises WhimbrelError when there is no such group or controller.
        """
        self._set_frozen(True)

    def thaw(self) -> None:
        """Undo `freeze`; nothing happens when it is not frozen."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        for folder in self._present():
            for name, words in _FREEZER.items():
                if (folder / name).exists():
                    (folder / name).write_text(words[frozen])
                    return  # one is enough: in the hybrid layout the v1 controller, else v2
        if frozen:
            raise WhimbrelError(f"control group {self.path} cannot be frozen: it is gone or has no freezer")

    def kill_all(self, *, timeout_s: float = 5.0) -> None:
        """SIGKILL everything inside, frozen or not, and wait until it is empty. Blocking.

        A frozen process runs no instruction more. Raises WhimbrelError after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = 0.0005
        self._signal_all()
        self.thaw()  # only now: a frozen v1 group keeps even SIGKILL waiting
        while pids := self._signal_all():
            if time.monotonic() > deadline:
                raise WhimbrelError(f"processes {pids} of {self.path} did not end {timeout_s:g} s after SIGKILL")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)

    def kill_frozen(self) -> None:
        """The same, said where the processes are frozen: none of them runs again."""
        self.kill_all()

    def _signal_all(self) -> list[int]:
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def remove(self, *, with_parents: bool = False) -> None:
        """Delete the empty groups, nested ones too. Raises WhimbrelError when one is in use.

        `with_parents`: the parents as well, where nothing else is in them. Not while services start: runc
        could be about to make a group in there.
        """
        for folder in self._present():
            nested = sorted((entry for entry in folder.glob("**/") if entry != folder), reverse=True)
            for entry in (*nested, folder):
                _remove_folder(entry)
        if with_parents:
            for folder in self.folders:
                for parent in folder.parents[: len(Path(self.path).parents) - 1]:
                    with contextlib.suppress(OSError):  # gone, or in use by another service
                        parent.rmdir()

    def memory_bytes(self) -> int | None:
        """What the memory controller charges to the group; None where there is no such controller."""
        for folder in self._present():
            for name in ("memory.usage_in_bytes", "memory.current"):
                with contextlib.suppress(OSError):
                    return int((folder / name).read_text())
        return None

    def _present(self) -> list[Path]:
        return [folder for folder in self.folders if folder.is_dir()]


def _remove_folder(folder: Path) -> None:
    # the kernel says EBUSY for a moment after the last process was reaped
    for pause_s in (0.001, 0.005, 0.02, 0.1, 0.5, 0.0):
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if not pause_s:
                raise WhimbrelError(f"cannot remove control group {folder}: {error.strerror}") from error
            time.sleep(pause_s)


def _inherit_cpuset(folder: Path) -> None:
    """A new v1 cpuset is empty and takes no process: copy the parents' CPUs and memory nodes downwards.

    In v2 an empty file means "as the parent", and the file is absent at the root, where this stops."""
    if (folder / "cgroup.controllers").exists():
        return
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = folder / name
        if file.exists() and not file.read_text().strip():
            parent = folder.parent / name
            if parent.exists():
                if not parent.read_text().strip():
                    _inherit_cpuset(folder.parent)
                file.write_text(parent.read_text())
