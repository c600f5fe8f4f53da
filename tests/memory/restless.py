"""Run by `test_lazy_events`: memory whose faults somebody else answers, and a program that gives it no rest.

Arguments: a socket, the number of the system call userfaultfd, a seed, how many pages. Says how many reads were wrong.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import socket
import struct
import sys
import time

PAGE_BYTES, STEPS, MOST_FORKS = 4096, 60, 6
UFFDIO_API, UFFDIO_REGISTER, MODE_MISSING = 0xC018AA3F, 0xC020AA00, 1
EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP = 1 << 1, 1 << 2, 1 << 3, 1 << 6
PROT_RW, MAP_PRIVATE_ANONYMOUS, MREMAP_MAYMOVE_FIXED, MADV_DONTNEED = 3, 0x22, 3, 4

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def first_byte(address: int) -> int:
    """Not by Python's own means: the interpreter's lock must be free while the kernel waits for the page."""
    byte = ctypes.create_string_buffer(1)
    libc.memcpy(byte, ctypes.c_void_p(address), 1)
    return byte.raw[0]


class Memory:
    """`due`: what must be read at each address."""

    def __init__(self, base: int, pages: int, seed: int) -> None:
        self.due = {base + page * PAGE_BYTES: page % 251 + 1 for page in range(pages)}
        self.random = random.Random(seed)
        self.children: list[int] = []
        self.wrong = 0

    def stretch(self) -> list[int]:
        start, length = self.random.choice(sorted(self.due)), self.random.randrange(1, 60)
        found = [start]
        while len(found) < length and found[-1] + PAGE_BYTES in self.due:
            found.append(found[-1] + PAGE_BYTES)
        return found

    def step(self) -> None:
        kind, pages = self.random.randrange(4), self.stretch()
        size = len(pages) * PAGE_BYTES
        if kind == 0:
            libc.madvise(pages[0], size, MADV_DONTNEED)
            self.due.update(dict.fromkeys(pages, 0))
        elif kind == 1:
            target = libc.mmap(None, size, 0, MAP_PRIVATE_ANONYMOUS, -1, 0)
            if libc.mremap(pages[0], size, size, MREMAP_MAYMOVE_FIXED, target) == target:
                values = [self.due.pop(page) for page in pages]
                self.due.update({target + at * PAGE_BYTES: value for at, value in enumerate(values)})
        elif kind == 2 and len(self.due) > 500:
            libc.munmap(pages[0], size)
            for page in pages:
                del self.due[page]
        elif kind == 3 and len(self.children) < MOST_FORKS:
            child = os.fork()
            if child == 0:
                time.sleep(0.002 * self.random.randrange(5))
                os._exit(1 if self.wrong_now() else 0)
            self.children.append(child)
        self.wrong += sum(first_byte(page) != self.due[page] for page in self.random.sample(sorted(self.due), 3))

    def wrong_now(self) -> int:
        return sum(first_byte(address) != value for address, value in self.due.items())

    def end(self) -> int:
        self.wrong += self.wrong_now()
        self.wrong += sum(1000 for child in self.children if os.waitpid(child, 0)[1])
        return self.wrong


def main() -> None:
    number, call, seed, pages = map(int, sys.argv[1:])
    with socket.socket(fileno=number) as talk:
        base = libc.mmap(None, pages * PAGE_BYTES, PROT_RW, MAP_PRIVATE_ANONYMOUS, -1, 0)
        uffd = libc.syscall(call, os.O_CLOEXEC | os.O_NONBLOCK)
        events = EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP
        fcntl.ioctl(uffd, UFFDIO_API, struct.pack("<QQQ", 0xAA, events, 0))
        fcntl.ioctl(uffd, UFFDIO_REGISTER, struct.pack("<QQQQ", base, pages * PAGE_BYTES, MODE_MISSING, 0))
        socket.send_fds(talk, [struct.pack("<Q", base)], [uffd])
        os.close(uffd)
        talk.recv(1)
        memory = Memory(base, pages, seed)
        for _ in range(STEPS):
            memory.step()
        talk.send(struct.pack("<Q", memory.end()))
        talk.recv(1)


if __name__ == "__main__":
    main()
