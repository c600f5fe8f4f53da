"""Remove a lab, whole or half-made, alive or long dead.

Every step is safe to repeat and touches only what is the lab's: its namespaces by their prefix; its
processes, its nodes' control groups and its directory only where the directory bears the lab's marker.
Control-group mounts are never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path

from whimbrel.lab import processes
from whimbrel.lab.build import remove as remove_namespaces
from whimbrel.lab.topology import NAMESPACE_DIR
from whimbrel.model.errors import WhimbrelError
from whimbrel.network import netns
from whimbrel.runtime.cgroups import Cgroup

MARKER = ".whimbrel-lab"
KILL_TIMEOUT_S = 5.0

_ESCAPE = re.compile(r"\\([0-7]{3})")  # mountinfo writes blanks so
_libc = ctypes.CDLL(None, use_errno=True)


def mark(lab_dir: Path) -> None:
    """Make the directory and say that it is a lab's: `sweep` deletes no other."""
    lab_dir.mkdir(parents=True, exist_ok=True)
    if not (lab_dir / MARKER).exists() and any(lab_dir.iterdir()):
        raise WhimbrelError(f"{lab_dir} holds other files: name an empty directory for the lab, or clear it")
    (lab_dir / MARKER).touch()


def sweep(lab_dir: Path, prefix: str = "wl-", nodes: Iterable[str] = ()) -> list[str]:
    """Remove all that is left of the lab in `lab_dir`, whose namespaces begin with `prefix`.

    `nodes` are names of its nodes, besides those that have a directory there. Returns what was removed, one
    line a kind. Raises WhimbrelError when something could not be removed, after all else is."""
    marked = (lab_dir / MARKER).exists()
    names: set[str] = set()
    if marked:  # otherwise a node of that name may be a real one
        names = {*nodes, *(entry.name for entry in lab_dir.iterdir() if (entry / "agent.toml").exists())}
    done: list[str] = []
    problems: list[str] = []
    steps: tuple[Callable[[], str], ...] = (
        lambda: _stop_processes(lab_dir) if marked else "",
        lambda: _empty_cgroups(names),
        lambda: _kill_inhabitants(lab_dir, prefix),
        lambda: _unmount(lab_dir) if marked else "",
        lambda: _count(remove_namespaces(prefix), "network namespace"),
        lambda: _remove_cgroups(names),
        lambda: _remove_directory(lab_dir) if marked else "",
    )
    for step in steps:
        try:
            line = step()
        except (WhimbrelError, OSError) as error:
            problems.append(str(error))
        else:
            if line:
                done.append(line)
    if problems:
        raise WhimbrelError(
            f"the lab is not wholly removed: {'; '.join(problems)}: run `whimbrel lab down` again"
        )
    return done


def _count(items: Sized, singular: str, plural: str = "") -> str:
    if not items:
        return ""
    return f"{len(items)} {singular if len(items) == 1 else plural or singular + 's'}"


def _stop_processes(lab_dir: Path) -> str:
    # the controller first, or it would report every agent as lost
    controller = [lab_dir / "controller.pid"]
    agents = list(lab_dir.glob("*/agent.pid"))
    running = [file.name for file in (*controller, *agents) if processes.read_pid(file)]
    processes.stop(controller)
    processes.stop(agents)
    return _count(running, "lab process", "lab processes")


def _empty_cgroups(names: Iterable[str]) -> str:
    killed: list[int] = []
    for name in sorted(names):
        group = Cgroup(f"/whimbrel/{name}")
        for folder in group.folders:
            _thaw(folder)
        killed += group.pids()
        group.kill_all(timeout_s=KILL_TIMEOUT_S)
    return _count(set(killed), "service process", "service processes")


def _thaw(folder: Path) -> None:
    """A frozen v1 group does not let its processes die."""
    for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        for state in (folder / file, *folder.glob(f"**/{file}")):
            with contextlib.suppress(OSError):
                if state.exists():
                    state.write_text(word)


def _remove_cgroups(names: Iterable[str]) -> str:
    present = [name for name in sorted(names) if any(f.is_dir() for f in Cgroup(f"/whimbrel/{name}").folders)]
    for name in present:
        Cgroup(f"/whimbrel/{name}").remove()
    return _count(present, "control group")


def _kill_inhabitants(lab_dir: Path, prefix: str) -> str:
    """End what still runs in the lab's and its containers' namespaces: agents' helpers, users' clients."""
    files = [*NAMESPACE_DIR.glob(f"{prefix}*"), *lab_dir.glob("*/netns/*")]
    host = netns.inode(Path("/proc/self/ns/net"))
    inodes = {netns.inode(file) for file in files} - {0, host}
    spared = set(_self_and_parents())
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while inhabitants := [pid for pid in _processes_in(inodes) if pid not in spared]:
        if time.monotonic() > deadline:
            raise WhimbrelError(f"processes {inhabitants} in the lab's namespaces do not end by SIGKILL")
        for pid in inhabitants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(inhabitants)
        time.sleep(0.01)
    return _count(killed, "other process", "other processes")


def _processes_in(inodes: set[int]) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(entry / "ns/net").st_ino in inodes and processes.start_time(int(entry.name)):
                    yield int(entry.name)


def _self_and_parents() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            return


def mounts_under(directory: Path) -> list[Path]:
    """Mount points in or below `directory`, innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(_ESCAPE.sub(lambda code: chr(int(code[1], 8)), line.split(" ")[4]))
        if point == directory or directory in point.parents:
            found.append(point)
    return found[::-1]


def _unmount(lab_dir: Path) -> str:
    directory = lab_dir.resolve()
    points = [str(point) for point in mounts_under(directory)]
    for point in points:
        _libc.umount2(os.fsencode(point), netns.MNT_DETACH | netns.UMOUNT_NOFOLLOW)
    return _count(points, "mount")


def _remove_directory(lab_dir: Path) -> str:
    left = mounts_under(lab_dir.resolve())
    if left:  # deleting now would delete what is mounted
        raise WhimbrelError(f"{left[0]} is still mounted")
    for entry in lab_dir.iterdir():  # the marker last: what is left by a failure must stay recognisable
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()
    (lab_dir / MARKER).unlink()
    lab_dir.rmdir()
    return f"the directory {lab_dir}"
