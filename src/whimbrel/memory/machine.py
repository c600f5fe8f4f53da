"""How each processor makes a system call, for `inject`: x86-64 and arm64.

The guardian imports this without the rest of the project; standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Refusal(Exception):
    """Why this process cannot be attached to now; `number` is the errno that comes closest."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


@dataclass(frozen=True, slots=True)
class Machine:
    """One processor's way to make a system call: `instruction`, at addresses that are multiples of `align`;
    `words` of 8 bytes in its register set; `pc` the index of the program counter in it."""

    instruction: bytes
    align: int
    words: int
    pc: int
    userfaultfd: int
    close: int
    fragile: frozenset[int]  # calls that return EINTR after any stop, handler or not: see signal(7)
    prepare: Callable[[Any, int, tuple[int, ...]], None]
    result: Callable[[Any], int]


def _prepare_x86(registers: Any, number: int, arguments: tuple[int, ...]) -> None:
    if registers[17] != 0x33:
        raise Refusal(errno.ENOTSUP, "it runs 32-bit code")
    registers[10] = number  # rax
    registers[15] = 2**64 - 1  # orig_rax: no call in progress, so the kernel must not restart one
    for place, value in zip((14, 13, 12), arguments, strict=False):  # rdi, rsi, rdx
        registers[place] = value


def _prepare_arm64(registers: Any, number: int, arguments: tuple[int, ...]) -> None:
    # Before this stop the kernel has already wound an interrupted call back to its `svc`.
    registers[8] = number
    for place, value in enumerate(arguments):
        registers[place] = value


_X86 = Machine(
    b"\x0f\x05", 1, 27, 16, 323, 3, frozenset((232, 281, 441, 65, 220, 128, 208, 333)),
    _prepare_x86, lambda registers: ctypes.c_int64(registers[10]).value,
)  # fmt: skip
_ARM64 = Machine(
    b"\x01\x00\x00\xd4", 4, 34, 32, 282, 57, frozenset((22, 441, 193, 192, 137, 4, 292)),
    _prepare_arm64, lambda registers: ctypes.c_int64(registers[0]).value,
)  # fmt: skip


def this_machine() -> Machine:
    """Of the processor we run on. Raises Refusal where there is none written."""
    name = platform.machine()
    if name not in ("x86_64", "aarch64"):
        raise Refusal(errno.ENOTSUP, f"not written for {name}")
    return _X86 if name == "x86_64" else _ARM64
