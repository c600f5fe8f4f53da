"""Stops a thread for a moment, has it make a userfaultfd, and takes that.

A userfaultfd belongs to the address space of whoever calls `userfaultfd()`, so the target itself must call
it. Only the guardian process calls this (see `guardian_main`), and imports it without the rest of the
project: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time
from contextlib import suppress
from typing import Any

from whimbrel.memory.machine import Machine, Refusal, this_machine

_CONT, _DETACH, _SYSCALL = 7, 17, 24
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _GET_RSEQ = 0x4204, 0x4205, 0x4206, 0x4207, 0x420F
_OPTION_SYSGOOD, _OPTION_SUSPEND_SECCOMP = 1, 1 << 21
_NT_PRSTATUS = 1
_EVENT_STOP = 128
_WALL = 0x40000000
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_PIDFD_THREAD = os.O_EXCL
_UFFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1  # 1 = UFFD_USER_MODE_ONLY: allowed without privilege
STOP_TIMEOUT_S = 0.5
_TICK_S = 0.1
_MAX_THREADS_LOOKED_AT = 16

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t


class Stuck(Exception):
    """The thread did not stop in time. Only leaving lets go of a thread that does not stop."""


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _peek(pid: int, address: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    here, there = _IoVec(ctypes.addressof(buffer), size), _IoVec(address, size)
    got = _readv(pid, ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1), ctypes.c_ulong(0))
    return buffer.raw[: max(got, 0)]


def call_instruction(pid: int, machine: Machine) -> int:
    """The address of an instruction that makes a system call: in the vDSO, else in any executable mapping."""
    with open(f"/proc/{pid}/maps", "rb") as maps:
        places = [line.split() for line in maps if b" r-xp " in line or b" rwxp " in line]
    if not places:
        raise Refusal(errno.ESRCH, "it has no memory: it is a zombie")
    places.sort(key=lambda fields: fields[-1] != b"[vdso]")
    for fields in places:
        start, end = (int(part, 16) for part in fields[0].split(b"-"))
        for chunk in range(start, min(end, start + (1 << 24)), 1 << 20):
            text = _peek(pid, chunk, min(1 << 20, end - chunk))
            found = text.find(machine.instruction)
            while found >= 0 and found % machine.align:
                found = text.find(machine.instruction, found + 1)
            if found >= 0:
                return chunk + found
    raise Refusal(errno.ENOTSUP, "no system call instruction in its text")


def threads_to_try(pid: int, machine: Machine) -> list[int]:
    """Threads of the process, the one that minds least first: asleep in a call that the kernel restarts, then
    running, then in a call that would return EINTR."""

    def burden(tid: int) -> int:
        try:
            with open(f"/proc/{pid}/task/{tid}/syscall", "rb") as file:
                now = file.read().split(b" ", 1)[0].strip()
        except OSError:
            return 4
        if now == b"running":
            return 1
        number = int(now)
        return 1 if number < 0 else 2 if number in machine.fragile else 0

    try:
        tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: tid != pid)
    except FileNotFoundError:
        raise Refusal(errno.ESRCH, "it is gone") from None
    if len(tids) == 1:
        return tids
    return sorted(tids[:_MAX_THREADS_LOOKED_AT], key=burden)


class Stopped:
    """One thread, seized and stopped; a context manager that lets it run on exactly as it was."""

    def __init__(self, tid: int, machine: Machine, instruction: int, options: int) -> None:
        self._tid, self._machine, self._instruction, self._options = tid, machine, instruction, options
        self._registers = (ctypes.c_uint64 * machine.words)()
        self._vector = _IoVec(ctypes.addressof(self._registers), ctypes.sizeof(self._registers))
        self._stands = False
        self.stopped_ns = 0

    def __enter__(self) -> Stopped:
        self._trace(_SEIZE, 0, self._options)
        self._began_ns = time.monotonic_ns()
        self._trace(_INTERRUPT)
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        try:
            self._until_trap(self._wait())
            self._stands = True
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._trace(_DETACH)
        self.stopped_ns = time.monotonic_ns() - self._began_ns
        signal.setitimer(signal.ITIMER_REAL, 0)

    def in_restartable_sequence(self) -> bool:
        """In the middle of one (rseq)? A call made from there would make the kernel forget to abort it."""
        config = (ctypes.c_uint64 * 3)()
        size = _ptrace(_GET_RSEQ, self._tid, ctypes.sizeof(config), ctypes.addressof(config))
        if size <= 0 or not config[0]:
            return False
        (section,) = struct.unpack("<Q", _peek(self._tid, config[0] + 8, 8) or bytes(8))
        if not section:
            return False
        descriptor = _peek(self._tid, section, 32)
        if len(descriptor) < 32:
            return True
        start, length = struct.unpack("<8xQQ8x", descriptor)
        return bool(start <= self._read()[self._machine.pc] < start + length)

    def call(self, number: int, *arguments: int) -> int:
        """Have the thread make one system call, and put its registers back. The result, or minus errno.

        The registers go back at a stop inside the kernel's signal handling, so that the kernel itself
        restarts a call that our stop interrupted, by its own rules and with what is left of its timeout. A
        signal that comes first is delivered first, to the thread as it was.
        """
        if _peek(self._tid, self._instruction, len(self._machine.instruction)) != self._machine.instruction:
            raise Refusal(errno.EAGAIN, "it has changed its program")
        while True:
            saved = bytes(self._read())
            self._machine.prepare(self._registers, number, arguments)
            self._registers[self._machine.pc] = self._instruction
            self._write()
            self._trace(_SYSCALL)
            status = self._wait()
            if status >> 8 == signal.SIGTRAP | 0x80:
                self._trace(_INTERRUPT)
                self._trace(_CONT)
                status = self._wait()
                result = self._machine.result(self._read())
                self._restore(saved)
                self._until_trap(status)
                return result
            self._restore(saved)
            if status >> 16 == 0 and status >> 8 == signal.SIGSYS:
                raise Refusal(errno.ENOTSUP, "it intercepts its own system calls")
            self._until_trap(status)

    def _until_trap(self, status: int) -> None:
        """From any stop to the plain one, delivering the signals on the way."""
        while status >> 16 != _EVENT_STOP:
            number = status >> 8 & 0xFF
            self._trace(_INTERRUPT)
            self._trace(_CONT, 0, 0 if number == signal.SIGTRAP | 0x80 else number)
            status = self._wait()

    def _wait(self) -> int:
        """The thread's next stop. Not os.waitpid: it cannot be woken by the timer without losing a status."""
        status = ctypes.c_int()
        while _libc.waitpid(self._tid, ctypes.byref(status), _WALL) < 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
            if not self._stands and time.monotonic_ns() - self._began_ns > STOP_TIMEOUT_S * 1e9:
                raise Stuck
            # With our registers in it, a thread is waited for however long it is frozen, while it is ours:
            # another thread's exec may have ended it without a word.
            with open(f"/proc/{self._tid}/status") as file:
                if f"TracerPid:\t{os.getpid()}\n" not in file.read():
                    raise Refusal(errno.ESRCH, "another of its threads ran exec")
        if not os.WIFSTOPPED(status.value):
            raise Refusal(errno.ESRCH, "it ended")
        return status.value

    def _read(self) -> Any:
        self._trace(_GETREGSET, _NT_PRSTATUS, ctypes.addressof(self._vector))
        return self._registers

    def _write(self) -> None:
        self._trace(_SETREGSET, _NT_PRSTATUS, ctypes.addressof(self._vector))

    def _restore(self, saved: bytes) -> None:
        ctypes.memmove(self._registers, saved, len(saved))
        self._write()

    def _trace(self, request: int, address: int = 0, data: int = 0) -> None:
        if _ptrace(request, self._tid, address, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _status(pid: int, tid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/task/{tid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def _pidfd(pid: int, tid: int) -> int:
    """A pidfd of the thread where the kernel has them (6.9): its descriptors need not be its leader's."""
    if tid != pid:
        fd: int = _libc.syscall(_PIDFD_OPEN, tid, _PIDFD_THREAD)
        if fd >= 0:
            os.set_inheritable(fd, False)
            return fd
    return os.pidfd_open(pid)


def _take_from_thread(pid: int, tid: int, machine: Machine, instruction: int) -> tuple[int, int]:
    status = _status(pid, tid)
    if status["State"][0] in "ZX":
        raise Refusal(errno.ESRCH, "it is a zombie")
    if int(status["TracerPid"]):
        raise Refusal(errno.EPERM, f"process {status['TracerPid']} traces it")
    filtered = status.get("Seccomp", "0") != "0"
    options = _OPTION_SYSGOOD | (_OPTION_SUSPEND_SECCOMP if filtered else 0)
    pidfd, mine = _pidfd(pid, tid), -1
    thread = Stopped(tid, machine, instruction, options)
    try:
        with thread:
            if thread.in_restartable_sequence():
                raise Refusal(errno.EAGAIN, "it is in a restartable sequence")
            theirs = thread.call(machine.userfaultfd, _UFFD_FLAGS)
            if theirs < 0:
                raise Refusal(-theirs, f"userfaultfd() in it failed: {os.strerror(-theirs)}")
            mine = _libc.syscall(_PIDFD_GETFD, pidfd, theirs, 0)
            why = ctypes.get_errno()
            thread.call(machine.close, theirs)
        if mine < 0:
            raise Refusal(why, f"pidfd_getfd failed: {os.strerror(why)}")
        return mine, thread.stopped_ns
    except BaseException:
        if mine >= 0:
            os.close(mine)
        raise
    finally:
        os.close(pidfd)


def take_userfaultfd(pid: int) -> tuple[int, int]:
    """(a userfaultfd of the process's address space, ns that one of its threads stood still).

    Raises Refusal, or Stuck: then the caller must leave.
    """
    machine = this_machine()
    refusal = Refusal(errno.ESRCH, "it has no threads")
    for attempt in range(4):
        try:
            instruction = call_instruction(pid, machine)
            for tid in threads_to_try(pid, machine):
                try:
                    return _take_from_thread(pid, tid, machine, instruction)
                except Refusal as error:
                    refusal = error
                    if error.number not in (errno.ESRCH, errno.EAGAIN):
                        raise
                except (FileNotFoundError, ProcessLookupError):
                    refusal = Refusal(errno.ESRCH, "it is gone")
        except FileNotFoundError:
            raise Refusal(errno.ESRCH, "it is gone") from None
        if refusal.number != errno.EAGAIN:
            break
        time.sleep(0.001 * attempt)
    raise refusal
