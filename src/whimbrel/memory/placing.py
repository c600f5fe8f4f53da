"""`place.c` as Python sees it: its structures, and the library itself.

It is called without Python's lock. What it is given stays where it is, and as it is, until it returns.
"""

from __future__ import annotations

import ctypes
import enum
import functools

from whimbrel.memory import compiled
from whimbrel.model.errors import StepFailed

_MOST = 64
_MESSAGE_BYTES = 32


class Answer(enum.IntEnum):
    """Why `serve` has returned; `Server.of` and `Server.size` say the rest."""

    NOTHING = 0
    BELL = 1
    MESSAGES = 2
    ASKED = 3
    ENDED = 4
    HOT_PLACED = 5
    ALL_PLACED = 6
    FAILED = 7


class Order(enum.IntEnum):
    """In which the fill places pages: around a program that reads on, hot ones, around the last fault, those needed
    first last time, warm ones, the rest."""

    READ_ON = 0
    HOT = 1
    AROUND = 2
    NEEDED = 3
    WARM = 4
    REST = 5


class Filling(enum.IntEnum):
    """Which pages are placed before anybody waits for them."""

    NO_PAGES = 0
    HOT_PAGES = 1
    ALL_PAGES = 2


class Queue(ctypes.Structure):
    """Runs number `first` to before `end` of an array of shape (n, 2): first index, how many."""

    _fields_ = (("runs", ctypes.c_void_p), ("first", ctypes.c_int64), ("end", ctypes.c_int64))


class Space(ctypes.Structure):
    """`struct space`."""

    _fields_ = (
        ("pages", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("settled", ctypes.c_void_p),
        ("cut", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("store", ctypes.c_void_p),
        ("hot", Queue),
        ("needed", Queue),
        ("warm", Queue),
        ("missed", Queue),
        ("next", ctypes.c_int64),
        ("follow", ctypes.c_int64),
        ("follow_end", ctypes.c_int64),
        ("spent_at", ctypes.c_int64),
        ("spent_slot", ctypes.c_int64),
        ("spent", ctypes.c_int64),
        ("faults", ctypes.c_int64),
        ("filled_pages", ctypes.c_int64),
        ("uffd", ctypes.c_int32),
        ("laid_out", ctypes.c_uint8),
        ("gone", ctypes.c_uint8),
        ("gives_back", ctypes.c_uint8),
        ("reads_on", ctypes.c_uint8),
    )


class _Said(ctypes.Union):
    _fields_ = (("messages", ctypes.c_char * (_MOST * _MESSAGE_BYTES)), ("asked", ctypes.c_int64 * _MOST))


class Server(ctypes.Structure):
    """`struct server`."""

    _fields_ = (
        ("spaces", ctypes.POINTER(ctypes.POINTER(Space))),
        ("count", ctypes.c_int64),
        ("epoll", ctypes.c_int32),
        ("bell", ctypes.c_int32),
        ("filling", ctypes.c_uint8),
        ("laid_out", ctypes.c_uint8),
        ("hot_told", ctypes.c_uint8),
        ("end_told", ctypes.c_uint8),
        ("fault_ns", ctypes.c_int64),
        ("of", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("said", _Said),
    )

    def messages(self) -> list[bytes]:
        """After `MESSAGES`: each of them, as the kernel wrote it."""
        said = ctypes.string_at(ctypes.addressof(self.said), self.size)
        return [said[at : at + _MESSAGE_BYTES] for at in range(0, self.size, _MESSAGE_BYTES)]

    def asked(self) -> list[int]:
        """After `ASKED`: indices of the pages that somebody waits for."""
        return list(map(int, self.said.asked[: self.size]))


@functools.cache
def library() -> ctypes.CDLL:
    """Raises StepFailed where it cannot be used (see `compiled`)."""
    lib = compiled.library("place")
    space, server = ctypes.POINTER(Space), ctypes.POINTER(Server)
    for name, result, arguments in (
        ("sizes", ctypes.c_int64, (ctypes.c_int,)),
        ("alive", ctypes.c_bool, (space,)),
        ("serve_fault", ctypes.c_int64, (space, ctypes.c_uint64)),
        ("serve_waiting", None, (space, ctypes.c_uint64)),
        ("fill", ctypes.c_int64, (space, ctypes.c_int, ctypes.c_int64)),
        ("serve", ctypes.c_int, (server, ctypes.c_int64)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if (lib.sizes(0), lib.sizes(1)) != (ctypes.sizeof(Space), ctypes.sizeof(Server)):
        raise StepFailed("the compiled part of Whimbrel does not fit its Python part: that is a mistake of ours")
    return lib


def constant(name: str) -> int:
    """One of the numbers that `place.c` goes by."""
    return ctypes.c_int.in_dll(library(), name).value
