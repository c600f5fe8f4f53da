"""What CRIU cannot save, found before anything is stopped: a pure read of /proc for a whole tree of
processes.

Each finding is one line: the process, the cause, the way out. CRIU itself has the last word; these are the
cases that it would report only with the container frozen (criu/files.c, criu/sk-inet.c, criu/seize.c).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress

import psutil

# Anonymous descriptors: what is not listed here or in _UNSAVABLE is judged by CRIU.
_SAVABLE_ANONYMOUS = frozenset(("eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd"))
_UNSAVABLE_ANONYMOUS = {
    "io_uring": "holds an io_uring: run the program with io_uring off (UV_USE_IO_URING=0 for Node.js)",
    "userfaultfd": "holds a userfaultfd: switch off what uses it (a garbage collector, a checkpointer)",
    "perf_event": "holds a perf event: end the profiler that runs in the container",
    "bpf-map": "holds a BPF map: load BPF programs from the host, not from the container",
    "bpf-prog": "holds a BPF program: load BPF programs from the host, not from the container",
    "bpf_link": "holds a BPF link: load BPF programs from the host, not from the container",
    "seccomp notify": "supervises the system calls of others: run the supervisor outside the container",
    "landlock-ruleset": "holds a Landlock rule set: close the descriptor after landlock_restrict_self()",
}
_OTHER_ANONYMOUS = "holds a descriptor of kind {kind!r} that CRIU does not know: close it before the migration"
_MEMORY_DEVICES = 1  # major number: null, zero, full, random, urandom, kmsg
_TTY_MAJORS = frozenset((4, 5, *range(136, 144)))
_TUN = (10, 200)

# As the kernel names a socket's protocol; sockets of families with one name per family have that.
_SOCKET_ADVICE = {
    "MPTCP": "has a Multipath TCP socket: use plain TCP (GODEBUG=multipathtcp=0 for Go 1.24 and newer)",
    "SCTP": "has an SCTP socket, which CRIU cannot save: close it before the migration, or use TCP",
    "SCTPv6": "has an SCTP socket, which CRIU cannot save: close it before the migration, or use TCP",
}
_SAVABLE_SOCKETS = frozenset(
    ("TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITE", "UDPLITEv6", "UDPLITEV6", "RAW", "RAWv6",
     "PING", "PINGv6", "UNIX", "UNIX-STREAM", "PACKET", "NETLINK")
)  # fmt: skip
_SOCKET = "has a socket of protocol {kind!r}, which CRIU cannot save: close it before the migration"
_NESTED_NAMESPACES = {"user": "user", "pid": "process"}
_ANONYMOUS = re.compile(r"anon_inode:\[?([^\]]*)\]?")


def unsupported(pid: int) -> str | None:
    """The first reason why CRIU cannot save the tree of processes below `pid`, as one line, or None."""
    return next(reasons(pid), None)


def reasons(pid: int) -> Iterator[str]:
    """All of them. A process that ends meanwhile gives none."""
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    with suppress(FileNotFoundError):
        own = _namespaces_of(f"/proc/{pid}")
        for member in tree:
            with suppress(FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
                who = f"process {member.pid} ({member.name()})"
                for reason in _of_process(f"/proc/{member.pid}", own):
                    yield f"{who} {reason}"


def _namespaces_of(base: str) -> dict[str, str]:
    return {kind: os.readlink(f"{base}/ns/{kind}") for kind in _NESTED_NAMESPACES}


def _of_namespaces(base: str, own: dict[str, str]) -> Iterator[str]:
    """CRIU carries such namespaces as the first process has them, none inside."""
    for kind, name in _namespaces_of(base).items():
        if name != own[kind]:
            yield f"is in a {_NESTED_NAMESPACES[kind]} namespace of its own: switch off the sandbox that made it"
            return


def _of_process(base: str, namespaces: dict[str, str]) -> Iterator[str]:
    with open(f"{base}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    if status["State"][0] in "ZX":
        if len(os.listdir(f"{base}/task")) > 1:
            yield "has lost its first thread while others run, which CRIU cannot save: restart it"
        return
    if status["TracerPid"] != "0":
        yield f"is traced by process {status['TracerPid']}: end that debugger or tracer (strace, gdb) first"
    yield from _of_namespaces(base, namespaces)
    yield from _of_mappings(base)
    seen: set[str] = set()
    for reason in _of_descriptors(base):
        if reason not in seen:  # a program has many sockets of one kind
            seen.add(reason)
            yield reason


def _of_mappings(base: str) -> Iterator[str]:
    with open(f"{base}/maps", "rb") as file:
        lines = file.read().splitlines()
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6:
            continue
        if fields[1].endswith(b"p") and fields[5].startswith((b"/anon_hugepage", b"/dev/hugepages/")):
            yield "has private huge-TLB memory, which cannot be moved yet: use transparent huge pages instead"
            return
        if match := _ANONYMOUS.fullmatch(fields[5].decode(errors="replace").rstrip()):
            if reason := _of_anonymous(match[1]):
                yield reason  # also when the descriptor is closed already
                return
            continue
        if not fields[5].startswith(b"/dev/"):
            continue
        name = fields[5].decode(errors="replace")
        if not name.startswith(("/dev/shm/", "/dev/zero", "/dev/mqueue/", "/dev/hugepages/")):
            yield f"has the device {name} mapped, which CRIU cannot save: give the container no such device"
            return


def _of_descriptors(base: str) -> Iterator[str]:
    for number in os.listdir(f"{base}/fd"):
        path = f"{base}/fd/{number}"
        with suppress(FileNotFoundError, ProcessLookupError):
            target = os.readlink(path)
            if match := _ANONYMOUS.fullmatch(target):
                reason = _of_anonymous(match[1])
            elif target.startswith("socket:"):
                reason = _of_socket(path)
            elif target.startswith(("pipe:", "net:", "mnt:", "pid:", "ipc:", "uts:", "user:", "/memfd:")):
                reason = None
            else:
                reason = _of_file(path, target)
            if reason is not None:
                yield reason


def _of_anonymous(kind: str) -> str | None:
    if kind in _SAVABLE_ANONYMOUS:
        return None
    return _UNSAVABLE_ANONYMOUS.get(kind) or _OTHER_ANONYMOUS.format(kind=kind)


def _of_socket(path: str) -> str | None:
    try:
        kind = os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode(errors="replace")
    except OSError:
        return None  # closed meanwhile, or a kernel without that name: left to CRIU
    if kind in _SAVABLE_SOCKETS:
        return None
    return _SOCKET_ADVICE.get(kind) or _SOCKET.format(kind=kind)


def _of_file(path: str, target: str) -> str | None:
    about = os.stat(path)
    if stat.S_ISBLK(about.st_mode):
        return f"has the disk {target} open, which CRIU cannot save: give the container a file system instead"
    if not stat.S_ISCHR(about.st_mode):
        return None
    number = os.major(about.st_rdev), os.minor(about.st_rdev)
    if number[0] == _MEMORY_DEVICES or number[0] in _TTY_MAJORS or number == _TUN:
        return None
    return f"has the device {target} open, which CRIU cannot save: give the container no such device"


OWN_MOUNTS = ("/proc", "/sys", "/dev")
# What runc mounts there, masks with and binds there (devices of a host come from its devtmpfs or tmpfs).
_KINDS_BELOW = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "tmpfs", "devtmpfs", "devpts", "mqueue", "securityfs"))
# Where runc mounts a new tmpfs; what it masks below /proc and /sys is one, too, and read-only.
_OWN_TMPFS = frozenset(("/dev", "/dev/shm", "/sys/fs/cgroup"))


def mounted_from_outside(pid: int, volumes: Collection[str] = ()) -> str | None:
    """A container of ours has its root, the kernel's own file systems and its `volumes` (paths); what else is mounted
    there somebody put in from outside, and CRIU would not know it at the destination. One line, or None; also when
    the process is gone."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            mounts = [line.split(b" - ") for line in file]
    except OSError:
        return None
    seen: set[str] = set()
    for left, right in mounts:
        root, point, options = (os.fsdecode(field) for field in left.split()[3:6])
        twice = point in seen
        seen.add(point)
        if not twice and (
            point == "/" or point in volumes or _is_own(point, os.fsdecode(right.split()[0]), root, options)
        ):
            continue
        return f"{point} is mounted in it from outside: unmount it there first"
    return None


def _is_own(point: str, kind: str, root: str, options: str) -> bool:
    """Whether runc mounts such a thing there. `root`: what of the file system is mounted; of a new one it is all."""
    if not any(point == top or point.startswith(top + "/") for top in OWN_MOUNTS) or kind not in _KINDS_BELOW:
        return False
    masks = not point.startswith("/dev") and "ro" in options.split(",")
    return kind != "tmpfs" or root != "/" or point in _OWN_TMPFS or masks
