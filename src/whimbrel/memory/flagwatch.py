"""Whether a service gave its memory a property that /proc/PID/maps does not show, since we began to look.

Only smaps shows such properties (`vmaflags`), and smaps counts every page: 10 to 40 ms a GB. So it is read while the
service runs; whether it still holds when the service stands still is known here, from the kernel's tracepoints,
through perf_event_open(2): of each of its threads and of all that these start; where there are many threads, of the
whole host instead. An answer of "yes" by somebody else's doing costs time, never truth.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from whimbrel.model.errors import Refused

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}.get(platform.machine())
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same numbers on x86-64 and arm64
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1
_PERF_TYPE_TRACEPOINT, _ATTRIBUTE_BYTES, _DISABLED, _INHERIT = 2, 112, 1, 2
_ALL_PROCESSES, _ANY_PROCESSOR, _PERF_FLAG_FD_CLOEXEC = -1, -1, 8
_SET_FILTER, _ENABLE = 0x40082406, 0x2400

# MADV_DONTFORK, DONTDUMP, DODUMP, WIPEONFORK, GUARD_INSTALL, GUARD_REMOVE; MAP_DROPPABLE, MAP_GROWSDOWN, MAP_LOCKED,
# MAP_HUGETLB; IORING_OP_MADVISE. Huge pages, read-ahead and merging are advice of which the loss changes speed only.
_ADVICE = " || ".join(f"behavior == {advice}" for advice in (10, 16, 17, 18, 102, 103))
_TRACEPOINTS = {
    "syscalls/sys_enter_madvise": _ADVICE,
    "syscalls/sys_enter_process_madvise": _ADVICE,
    "syscalls/sys_enter_mmap": "flags & 0x42108",
    "syscalls/sys_enter_mlock": "",
    "syscalls/sys_enter_mlock2": "",
    "syscalls/sys_enter_mlockall": "",
    "syscalls/sys_enter_map_shadow_stack": "",
    "io_uring/io_uring_submit_req": "opcode == 25",
}
# Not everywhere; without the tracepoint what it traces is not there either.
_MAY_BE_ABSENT = frozenset(("syscalls/sys_enter_map_shadow_stack", "io_uring/io_uring_submit_req"))
_MOST_THREADS = 48  # a descriptor for each tracepoint of each
_SETTLED_AFTER = 8

_libc = ctypes.CDLL(None, use_errno=True)


class FlagWatch:
    """Of these processes from now on, until `close`. Raises Refused where the kernel does not tell."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._events: list[int] = []
        self._threads: set[int] = set()
        self._whole_host = False
        try:
            self.add(pids)
        except BaseException:
            self.close()
            raise

    def add(self, pids: Iterable[int]) -> None:
        """Of these as well; of who is watched already nothing changes. Raises Refused."""
        pids = list(pids)
        try:
            for _ in range(_SETTLED_AFTER):
                fresh = {thread for pid in pids for thread in _threads_of(pid)} - self._threads
                if not fresh or self._whole_host:
                    return
                if len(self._threads | fresh) > _MOST_THREADS:
                    self._whole_host = True
                    for cpu in _processors():
                        self._watch(_ALL_PROCESSES, cpu)
                    return
                for thread in fresh:  # each tells of the threads that it starts from now on
                    with contextlib.suppress(ProcessLookupError):
                        self._watch(thread, _ANY_PROCESSOR)
                self._threads |= fresh
        except OSError as error:
            raise Refused(f"the kernel does not tell of changes to memory: {error}") from error
        raise Refused("the service starts threads faster than they can be looked at")

    def silent(self) -> bool:
        """Nothing has happened so far."""
        return not any(struct.unpack("<Q", os.read(event, 8))[0] for event in self._events)

    def close(self) -> None:
        """Safe to repeat."""
        while self._events:
            os.close(self._events.pop())

    def _watch(self, thread: int, cpu: int) -> None:
        for tracepoint, condition in _numbers().items():
            self._events.append(_open(tracepoint, thread, cpu, condition))


def _threads_of(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _processors() -> list[int]:
    """Those that are online: ``0-3,8-11``."""
    found: list[int] = []
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


@cache
def _numbers() -> dict[int, str]:
    """{the kernel's number of a tracepoint: what counts there}. Raises OSError."""
    root = _tracefs()
    try:
        found = {}
        for name, condition in _TRACEPOINTS.items():
            try:
                found[int(_read(root, f"events/{name}/id"))] = condition
            except FileNotFoundError:
                if name not in _MAY_BE_ABSENT:
                    raise
        return found
    finally:
        os.close(root)


def _tracefs() -> int:
    """The kernel's tracing folder, mounted for nobody to see (Linux 5.2)."""
    context = _checked(_libc.syscall(_FSOPEN, b"tracefs", _FSOPEN_CLOEXEC), "tracefs")
    try:
        _checked(_libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), "tracefs")
        return _checked(_libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0), "tracefs")
    finally:
        os.close(context)


def _read(root: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def _open(tracepoint: int, thread: int, cpu: int, condition: str) -> int:
    """A counter, at work. `struct perf_event_attr`: type, size, config, period, sample type, read format, flags."""
    if _PERF_EVENT_OPEN is None:
        raise OSError(f"not written for {platform.machine()}")
    flags = _DISABLED if thread == _ALL_PROCESSES else _DISABLED | _INHERIT
    attribute = struct.pack("<IIQQQQQ", _PERF_TYPE_TRACEPOINT, _ATTRIBUTE_BYTES, tracepoint, 0, 0, 0, flags)
    buffer = ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES)
    arguments = (ctypes.byref(buffer), thread, cpu, -1, _PERF_FLAG_FD_CLOEXEC)
    event = _checked(_libc.syscall(_PERF_EVENT_OPEN, *arguments), "perf_event_open")
    try:
        if condition:
            _checked(_libc.ioctl(event, _SET_FILTER, ctypes.c_char_p(condition.encode())), f"filter {condition!r}")
        fcntl.ioctl(event, _ENABLE, 0)
    except BaseException:
        os.close(event)
        raise
    return event


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
