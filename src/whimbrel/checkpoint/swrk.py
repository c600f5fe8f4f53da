"""One CRIU worker process (``criu swrk``) and its RPC.

A worker is started ahead of time, so that neither process start nor feature detection falls into the freeze.
It runs in the network namespace of the container (then CRIU has no network namespace to carry: declared
external it would still mount a sysfs for it, 24-35 ms) and in a private mount namespace where /run is a tmpfs
of ours (CRIU keeps its feature cache only on a tmpfs: 30-40 ms).

All calls block; run them in a thread. Not thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.model.errors import StepFailed

MAX_MESSAGE_BYTES = 1 << 20


def _go_on(success: bool) -> bytes:
    return bytes(pb.Request(type=pb.NOTIFY, notify_success=success).SerializeToString())


def criu_path() -> str:
    """The CRIU to run: $WHIMBREL_CRIU, else the private one that setup unpacked, else the one on PATH."""
    chosen = os.environ.get("WHIMBREL_CRIU")
    if chosen:
        return chosen
    prefix = Path(os.environ.get("WHIMBREL_PREFIX", "/opt/whimbrel")) / "bin/criu"
    return str(prefix) if prefix.exists() else "criu"


def prepare_run_dir(run_dir: Path) -> Path:
    """A directory on the node's tmpfs that workers see as /run; shared, so the feature cache is made once."""
    directory = run_dir / "criu-run"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _log_of(opts: pb.Options) -> Path:
    return Path(f"/proc/self/fd/{opts.images_dir_fd}") / opts.log_file


def _cause(log: Path) -> str:
    """The first complaint in CRIU's log that is one: the rest follows from it. A host may forbid CRIU to raise its
    limit of open files, which does no harm, yet it is what CRIU gives as the reason of any failure after it."""
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            _, is_error, text = line.partition("Error (")
            if is_error and "RLIMIT_NOFILE" not in text:
                return text.partition("): ")[2].strip()
    return ""


class Process(Protocol):
    """A started program, the leader of its own process group."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def wait(self) -> object: ...


class Launcher(Protocol):
    """Starts a program with `fds` under the numbers that they have here, `stderr` as its standard error."""

    def __call__(self, argv: Sequence[str], *, fds: Sequence[int], stderr: int) -> Process: ...


def launch_child(argv: Sequence[str], *, fds: Sequence[int], stderr: int) -> Process:
    """As a child of this process."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=fds,
        cwd="/",
        start_new_session=True,
    )


def launch_bound(argv: Sequence[str], *, fds: Sequence[int], stderr: int) -> Process:
    """As a child that dies with the calling thread."""
    return launch_child(["setpriv", "--pdeathsig", "KILL", *argv], fds=fds, stderr=stderr)


class CriuWorker:
    """A ``criu swrk`` process, waiting for its one request.

    `netns` is a path to a network namespace; `cgroup_procs` are ``cgroup.procs`` files to join first (at a
    restore, so that the restored tasks are born in the container's cgroups), `own_cgroupns` whether in a new
    control-group namespace rooted there; `binds` are folders to show elsewhere (what, where) for this worker alone;
    `pass_fds` stay open in it under the same numbers.

    The restored tree becomes the launcher's: by default the worker dies with the thread that constructs this
    object. Construct it in a thread that lives as long as the agent, so that an agent's death frees a frozen source
    at once. Under another launcher the worker ends, and undoes its work, when its RPC socket is closed.
    """

    def __init__(
        self,
        *,
        netns: Path,
        run_dir: Path,
        cgroup_procs: Sequence[Path] = (),
        own_cgroupns: bool = False,
        binds: Sequence[tuple[Path, Path]] = (),
        pass_fds: Sequence[int] = (),
        launch: Launcher = launch_bound,
    ) -> None:
        self._pending: pb.Reply | None = None
        self._what = ""
        self._log = Path()
        self.restored_pid = 0
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        steps = [f"echo $$ > {shlex.quote(str(path))}" for path in cgroup_procs]
        steps += [shlex.join(("mount", "--bind", str(what), str(where))) for what, where in binds]
        steps.append(shlex.join(("mount", "--bind", str(prepare_run_dir(run_dir)), "/run")))
        in_cgroupns = "unshare --cgroup " if own_cgroupns else ""
        steps.append(f"exec {in_cgroupns}{shlex.quote(criu_path())} swrk {theirs.fileno()}")
        argv = ["nsenter", f"--net={netns}", "unshare", "--mount", "--propagation", "private"]
        self._complaints = os.memfd_create("criu-stderr", os.MFD_CLOEXEC)
        with theirs:
            self._process = launch(
                [*argv, "sh", "-c", " && ".join(steps)], fds=[theirs.fileno(), *pass_fds], stderr=self._complaints
            )
        # Who it has forked may outlive it, with its end of the connection, and would never answer.
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def warm_up(self) -> tuple[int, ...]:
        """Ask for the version and keep the worker: it then has loaded everything. Returns (major, minor, sublevel)."""
        request = pb.Request(type=pb.VERSION, keep_open=True)
        reply = self._exchange(request.SerializeToString())
        version = pb.Version.FromString(reply.version)
        return version.major_number, version.minor_number, version.sublevel

    def detect_features(self) -> pb.Features:
        """Make CRIU probe this kernel (and write its cache). Ends the worker's request."""
        ask = pb.Features(mem_track=True, lazy_pages=True)
        reply = self._exchange(pb.Request(type=pb.FEATURE_CHECK, features=ask, keep_open=True).SerializeToString())
        return reply.features

    def pre_dump(self, opts: pb.Options) -> None:
        """One round of CRIU's own: what changed since the parent's soft-dirty bits were cleared. The tree stands still
        for a moment and runs on. Raises StepFailed with CRIU's reason."""
        self._what, self._log = "pre-dump", _log_of(opts)
        self._pending = self._exchange(pb.Request(type=pb.SINGLE_PRE_DUMP, opts=opts).SerializeToString())
        self.advance(None)

    def begin_dump(self, opts: pb.Options) -> None:
        """Start a dump; it pauses at CRIU's first point, ``pre-dump``: nothing is frozen yet."""
        self._what, self._log = "checkpoint", _log_of(opts)
        self._pending = self._exchange(pb.Request(type=pb.DUMP, opts=opts).SerializeToString())

    def begin_restore(self, opts: pb.Options) -> None:
        """Start a restore; it pauses at CRIU's first point, ``pre-restore``."""
        self._what, self._log = "restore", _log_of(opts)
        self._pending = self._exchange(pb.Request(type=pb.RESTORE, opts=opts).SerializeToString())

    def advance(self, point: str | None) -> None:
        """Go on to a later point of CRIU's (it pauses there again), or to the end with None.

        A dump passes ``pre-dump``, ``query-ext-files`` (the tree is frozen) and ``post-dump`` (all images are
        written); a restore ``post-restore`` and ``pre-resume`` (all is done but the first instruction).
        Raises StepFailed with CRIU's reason.
        """
        while self._pending is not None and self._pending.type == pb.NOTIFY:
            self.restored_pid = self._pending.notify.pid or self.restored_pid
            if self._pending.notify.script == point:
                return
            self._pending = self._exchange(_go_on(True))
        reply = self._pending
        if reply is None or not reply.success:
            reason = "" if reply is None else reply.message or (os.strerror(reply.errno) if reply.errno else "")
            raise StepFailed(f"CRIU's {self._what} failed: {_cause(self._log) or reason.strip() or 'see its log'}")
        if point is not None:
            raise StepFailed(f"CRIU's {self._what} ended before {point}")
        if reply.HasField("restore"):
            self.restored_pid = int(reply.restore.pid)

    def give_up(self) -> None:
        """At a pause: tell CRIU to undo what it did so far, as far as it can; `kill` does the rest."""
        with contextlib.suppress(OSError):
            self._sock.send(_go_on(False))

    def wait(self, *, timeout_s: float) -> bool:
        """Wait until the worker has said its last word (its reply) or is gone; False after the time."""
        self._sock.settimeout(timeout_s)
        try:
            return self._sock.recv(MAX_MESSAGE_BYTES) is not None
        except OSError:
            return False
        finally:
            self._sock.settimeout(None)

    def _exchange(self, message: bytes) -> pb.Reply:
        try:
            self._sock.send(message)
            data = self._answer()
        except (OSError, ValueError) as error:  # ValueError: it was closed here meanwhile
            raise StepFailed(f"CRIU went away: {self._last_words() or error}") from error
        if not data:
            raise StepFailed(f"CRIU went away: {self._last_words() or self._process.poll()}")
        reply: pb.Reply = pb.Reply.FromString(data)
        return reply

    def _answer(self) -> bytes:
        """Empty when it has ended without."""
        either = select.poll()
        either.register(self._sock, select.POLLIN)
        either.register(self._pidfd, select.POLLIN)
        either.poll()
        try:
            return self._sock.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def _last_words(self) -> str:
        """What the worker, or the shell that started it, complained of last."""
        size = os.fstat(self._complaints).st_size
        return os.pread(self._complaints, size, 0).decode(errors="replace").strip().rpartition("\n")[2]

    def kill(self) -> None:
        """End the worker now; a tree that it holds frozen runs on. Safe to repeat."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._sock.close()
        if self._complaints >= 0:
            os.close(self._complaints)
            os.close(self._pidfd)
            self._complaints = self._pidfd = -1

    def interrupt(self) -> None:
        """Like kill, but callable from another thread while a request is under way there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
