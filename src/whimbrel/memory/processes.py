"""The processes of a tree, read from /proc."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from dataclasses import dataclass

from whimbrel.memory.vmas import open_proc, read_proc

_KCMP = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
_KCMP_VM = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Status:
    """From /proc/PID/status. `ns_pids`: its pid in each pid namespace, outermost first. `locks_memory`: some of it is
    locked (mlock)."""

    name: str
    state: str
    parent: int
    ns_pids: tuple[int, ...]
    locks_memory: bool = False

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def read_status(directory_fd: int) -> Status:
    """Of the process behind an open /proc/PID. Raises ProcessLookupError when it is gone."""
    fields = dict(line.split(b":", 1) for line in read_proc(directory_fd, "status").splitlines() if b":" in line)
    return Status(
        name=fields[b"Name"].strip().decode(errors="replace"),
        state=fields[b"State"].strip()[:1].decode(),
        parent=int(fields[b"PPid"]),
        ns_pids=tuple(map(int, fields[b"NSpid"].split())),
        locks_memory=fields.get(b"VmLck", b"0").split()[0] != b"0",
    )


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            fd = os.open(f"/proc/{pid}/task/{thread}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            text = b""
            while part := os.read(fd, 1 << 16):
                text += part
        except ProcessLookupError:
            continue
        finally:
            os.close(fd)
        found.extend(map(int, text.split()))
    return found


def tree_of(root_pid: int) -> dict[int, int]:
    """{pid: parent's pid} of a process and all that descend from it, parents first; the root's parent is 0.

    In a running tree a process that just started or ended may be missing; in a stopped one the answer is
    exact.
    """
    tree = {root_pid: 0}
    queue = [root_pid]
    for pid in queue:  # grows while we go through it
        for child in _children(pid):
            if child not in tree:
                tree[child] = pid
                queue.append(child)
    return tree


def ns_pid_of(pid: int) -> int:
    """The pid of a process in its own pid namespace. Raises ProcessLookupError."""
    directory = open_proc(pid)
    try:
        return read_status(directory).ns_pids[-1]
    finally:
        os.close(directory)


def ns_pids_of(root_pid: int) -> list[int]:
    """The pids of a tree, each in its own pid namespace; vanished processes are left out."""
    found = []
    for pid in tree_of(root_pid):
        with contextlib.suppress(ProcessLookupError):
            found.append(ns_pid_of(pid))
    return found


def same_memory(one_pid: int, other_pid: int) -> bool:
    """Do two processes share one address space, as between vfork and exec?"""
    return _KCMP is not None and _libc.syscall(_KCMP, one_pid, other_pid, _KCMP_VM, 0, 0) == 0
