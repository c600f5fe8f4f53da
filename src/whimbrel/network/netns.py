"""Network namespaces: make, name, enter.

A thread that wants to act elsewhere must never come back to a shared pool, so `call` runs its function in
a thread of its own, which ends in the foreign namespace. Sockets, and processes started there, stay in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from whimbrel.model.errors import Conflict, Refused, WhimbrelError

NAMED_DIR = Path("/run/netns")
"""Where `ip netns` looks for names."""
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def _enter_fd(fd: int) -> None:
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")


def enter(path: Path) -> None:
    """Move the calling thread into the namespace at `path` (for a fresh thread, or a child before exec)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Refused(f"there is no network namespace at {path}: was it removed by somebody else?") from error
    try:
        _enter_fd(fd)
    except OSError as error:
        raise Refused(f"the network namespace {path} cannot be entered ({error.strerror}): run as root") from error
    finally:
        os.close(fd)


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """The calling thread is in the namespace at `path` inside the block, and back afterwards.

    For straight-line code only: do not await or yield to other code of the same thread inside the block.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(path)
        try:
            yield
        finally:
            _enter_fd(home)
    finally:
        os.close(home)


def _in_own_thread(function: Callable[[], T]) -> T:
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]  # type: ignore[no-any-return]


def call(path: Path, function: Callable[[], T]) -> T:
    """Run `function` in the namespace at `path`, in a thread of its own; returns what it returns."""

    def run() -> T:
        enter(path)
        return function()

    return _in_own_thread(run)


class Worker:
    """One thread that lives in a namespace and runs what it is given, in order (`call` again and again)."""

    def __init__(self, path: Path) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"netns-{path.name}", initializer=enter, initargs=(path,))

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


def create(path: Path) -> None:
    """Make a new network namespace, kept alive by a mount at `path` (`ip netns` finds it under /run/netns).

    Raises Conflict when `path` exists, Refused when the kernel or the user does not permit it.
    """
    _reserve(path)

    def make() -> None:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        here = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _check(_libc.mount(here.encode(), os.fsencode(path), None, MS_BIND, None), "mount")

    try:
        _in_own_thread(make)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Refused(f"cannot make the network namespace {path} ({error}): run as root") from error


def _reserve(path: Path) -> None:
    """An empty file to mount a namespace at. Raises Conflict when there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent == NAMED_DIR:
        _share(NAMED_DIR)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError as error:
        raise Conflict(f"the network namespace {path} exists already: remove it, or use another name") from error


def _share(directory: Path) -> None:
    """Make it a mount point whose mounts reach other mount namespaces, as the first `ip netns add` on a machine does.
    Left to that, each namespace of ours would be mounted twice from then on, once below and out of reach, and could
    not be removed. Locked as there, against another who does it at the same time."""
    place = os.fsencode(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _libc.mount(b"", place, b"none", MS_SHARED | MS_REC, None) == 0:
            return
        if _libc.mount(place, place, b"none", MS_BIND | MS_REC, None) == 0:
            _libc.mount(b"", place, b"none", MS_SHARED | MS_REC, None)
        # else `create` is refused too, and says why
    finally:
        os.close(fd)


def keep(path: Path, source: Path) -> None:
    """Give an existing namespace (``/proc/PID/ns/net``) a name of ours too; `remove` takes it away again."""
    _reserve(path)
    try:
        _check(_libc.mount(os.fsencode(source), os.fsencode(path), None, MS_BIND, None), "mount")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Refused(
            f"the network namespace {source} cannot be kept ({error}): does its process still run?"
        ) from error


def remove(path: Path) -> None:
    """Forget the namespace at `path`; the kernel ends it with its last process. Safe to repeat."""
    while path.exists():
        if _libc.umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
            break
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WhimbrelError(f"the network namespace {path} cannot be removed: {error.strerror}") from error


def inode(path: Path) -> int:
    """The namespace's number, as in ``readlink /proc/PID/ns/net``; 0 when there is none at `path`."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def write_sysctl(name: str, value: int | str) -> None:
    """Set ``net.…`` in the calling thread's namespace; `name` with slashes (interfaces may hold dots)."""
    try:
        Path("/proc/sys", name).write_text(f"{value}\n")
    except OSError as error:
        raise Refused(f"the kernel setting {name} cannot be set to {value}: {error.strerror}") from error


def read_sysctl(name: str) -> str:
    return Path("/proc/sys", name).read_text().strip()
