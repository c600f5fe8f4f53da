"""Remove a lab, whole or half-made, alive or long dead.

Every step is safe to repeat and touches only what the lab's own record names, never what merely looks like
a lab's: other labs may live on the same host. Control-group mounts are never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path

from whimbrel.lab import processes, storage
from whimbrel.lab.build import remove as remove_namespaces
from whimbrel.lab.record import MARKER, STATE_FILE, is_marked, recorded
from whimbrel.lab.topology import Topology
from whimbrel.model.errors import WhimbrelError
from whimbrel.network import netns
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.storage.mounts import mounts

KILL_TIMEOUT_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


def sweep(lab_dir: Path) -> list[str]:
    """Remove all that is left of the lab recorded in `lab_dir`; without a record, nothing.

    Returns what was removed, one line a kind. Raises WhimbrelError when something could not be removed, after
    all else is; the record then stays, for the next try."""
    if not is_marked(lab_dir):
        return []
    plan = recorded(lab_dir)
    nodes = [site.name for site in plan.sites] if plan else []
    inodes = _inodes(lab_dir, plan)

    def known() -> set[int]:
        """Also what an agent made while it was being stopped: a service that was just starting."""
        inodes.update(_inodes(lab_dir, plan))
        return inodes

    done: list[str] = []
    problems: list[str] = []
    steps: tuple[Callable[[], str], ...] = (
        lambda: _stop_processes(lab_dir),
        lambda: _empty_cgroups(nodes, known()),
        lambda: _kill_inhabitants(known()),
        lambda: _empty_cgroups(nodes, known()),  # what a runc still made after its agent, until it was killed above
        lambda: _unmount(lab_dir),
        lambda: _count(remove_namespaces(plan) if plan else [], "network namespace"),
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
        raise WhimbrelError(f"the lab is not wholly removed: {'; '.join(problems)}: run `whimbrel lab down` again")
    return [*done, _remove_directory(lab_dir)]


def _count(items: Sized, singular: str, plural: str = "") -> str:
    if not items:
        return ""
    return f"{len(items)} {singular if len(items) == 1 else plural or singular + 's'}"


def _stop_processes(lab_dir: Path) -> str:
    # the controller first, or it would report every agent as lost
    controller = [lab_dir / "controller.pid"]
    agents = list(lab_dir.glob("*/agent.pid"))
    running = [file for file in (*controller, *agents) if processes.read_pid(file)]
    processes.stop(controller)
    processes.stop(agents)
    running += storage.stop_mounts(lab_dir)  # before the services: one that waits for a hung mount cannot be killed
    relays = sorted(processes.relay_directory(lab_dir).glob("*.pid"))
    running += [file for file in relays if processes.read_pid(file)]
    processes.stop_at_once(relays)  # last: the others take their leave over these links
    return _count(running, "lab process", "lab processes")


def _inodes(lab_dir: Path, plan: Topology | None) -> set[int]:
    """The lab's network namespaces and its containers': who is in one of them is the lab's."""
    own = [plan.namespace_path(name) for name in plan.namespaces] if plan else []
    here = netns.inode(Path("/proc/self/ns/net"))
    return {netns.inode(file) for file in (*own, *lab_dir.glob("*/netns/*"))} - {0, here}


def _service_groups(nodes: Iterable[str]) -> list[Cgroup]:
    paths = {
        f"/whimbrel/{node}/{folder.name}"
        for node in nodes
        for parent in Cgroup(f"/whimbrel/{node}").folders
        for folder in (parent.iterdir() if parent.is_dir() else ())
        if folder.is_dir()
    }
    return [Cgroup(path) for path in sorted(paths)]


def _empty_cgroups(nodes: Iterable[str], inodes: set[int]) -> str:
    """Kill and remove the nodes' services; a group of strangers is another node's of the same name."""
    killed: set[int] = set()
    removed: list[Cgroup] = []
    for group in _service_groups(nodes):
        pids = group.pids()
        if pids and not any(_namespace_of(pid) in inodes for pid in pids):
            continue
        group.kill_all(timeout_s=KILL_TIMEOUT_S)
        group.remove()
        killed.update(pids)
        removed.append(group)
    for node in nodes:
        for folder in Cgroup(f"/whimbrel/{node}").folders:
            with contextlib.suppress(OSError):  # gone, or in use: then it is not ours
                folder.rmdir()
                folder.parent.rmdir()
    told = (_count(killed, "service process", "service processes"), _count(removed, "control group"))
    return ", ".join(line for line in told if line)


def _kill_inhabitants(inodes: set[int]) -> str:
    """End what else runs in the lab's and its containers' namespaces: agents' helpers, users' clients."""
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


def _namespace_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _processes_in(inodes: set[int]) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            if _namespace_of(pid) in inodes and processes.start_time(pid):
                yield pid


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
    points = [mount.point for mount in mounts()]
    return [point for point in points if point == directory or directory in point.parents][::-1]


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
    for entry in lab_dir.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (MARKER, STATE_FILE):
            entry.unlink()
    for name in (STATE_FILE, MARKER):  # the record last: what a failure leaves must stay recognisable
        (lab_dir / name).unlink(missing_ok=True)
    lab_dir.rmdir()
    return f"the directory {lab_dir}"
