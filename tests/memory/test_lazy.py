"""Placing pages into an address space that has none yet, by a userfaultfd on memory of our own."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from whimbrel.memory.lazy import LazyServer
from whimbrel.memory.lazyspace import LazySpace
from whimbrel.memory.placing import Answer, Filling, Order, constant, library
from whimbrel.memory.reserve import address_of
from whimbrel.memory.store import ZERO_SLOT, PageStore
from whimbrel.memory.supply import MISSING, Supply
from whimbrel.model.errors import StepFailed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a userfaultfd that sees all faults needs root")

_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
_UFFDIO_API, _UFFDIO_REGISTER, _MODE_MISSING = 0xC018AA3F, 0xC020AA00, 1
_UFFDIO_UNREGISTER = 0x8010AA01
_EVENT_REMOVE = 1 << 3
_MADVISE = {"x86_64": 28, "aarch64": 233}[platform.machine()]
P = 4096
libc = ctypes.CDLL(None, use_errno=True)
AROUND_PAGES, BEFORE_PAGES, FOLLOW_PAGES = map(constant, ("AROUND_PAGES", "BEFORE_PAGES", "FOLLOW_PAGES"))
GIVEN_BACK_PAGES, ZERO_PAGES, STEP_PAGES = map(constant, ("GIVEN_BACK_PAGES", "ZERO_PAGES", "STEP_PAGES"))


@contextmanager
def lacking(pages: int, events: int = 0) -> Iterator[tuple[int, int, mmap.mmap]]:
    """(userfaultfd, address, memory) of fresh memory whose faults we answer."""
    memory = mmap.mmap(-1, pages * P, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memoryview(memory))
    uffd = libc.syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    assert uffd >= 0
    fcntl.ioctl(uffd, _UFFDIO_API, struct.pack("<QQQ", 0xAA, events, 0))
    fcntl.ioctl(uffd, _UFFDIO_REGISTER, struct.pack("<QQQQ", address, pages * P, _MODE_MISSING, 0))
    yield uffd, address, memory


def stored(store: PageStore, count: int) -> None:
    with store.room_for(count) as window:
        for page in range(count):
            window[page * P : (page + 1) * P] = bytes([page % 251 + 1]) * P
    store.take(count)


def there(memory: mmap.mmap, count: int) -> set[int]:
    first = address_of(memoryview(memory)) // P
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = np.frombuffer(os.pread(pagemap.fileno(), 8 * count, 8 * first), np.uint64)
    return set(np.flatnonzero(entries >> np.uint64(63)).tolist())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def call_of(thread: threading.Thread) -> int:
    """The number of the system call that the thread waits in, -1 while it runs."""
    word = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]
    return int(word) if word != "running" else -1


def right(memory: mmap.mmap, count: int) -> bool:
    """Every page is there, and what it should be; one that is not there would stop the reader for good."""
    if len(there(memory, count)) < count:
        return False
    return all(memory[page * P] == memory[page * P + P - 1] == page % 251 + 1 for page in range(count))


@pytest.mark.parametrize("borders", [(), (1,), (7, 130, 131, 290), (50, 51, 60), (299,)])
def test_pages_of_mappings_that_touch_are_all_placed(borders: tuple[int, ...]) -> None:
    """One copy must stay within one mapping; where two touch, the pages before the border must not be left out."""
    count, store = 300, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        for border in borders:
            assert libc.mprotect(ctypes.c_void_p(address + border * P), P, mmap.PROT_READ) == 0
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        server = LazyServer()
        server.add(LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map))))
        server.begin_fill()
        server.laid_out()
        assert server.filled()[0] == count * P
        assert right(memory, count)
        server.stop()


def test_what_is_placed_many_at_once_is_not_kept_twice() -> None:
    """The next pages are placed in the memory of the last ones. Single ones are kept: to give back is a call, too."""
    count, store = 300, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        slots = np.arange(1, count + 1)
        slots[: GIVEN_BACK_PAGES // 2] = slots[: GIVEN_BACK_PAGES // 2][::-1].copy()  # apart from each other
        server = LazyServer()
        server.add(LazySpace(uffd, Supply(pages, slots), address_of(memoryview(store.map)), gives_back=True))
        server.begin_fill()
        server.laid_out()
        assert server.filled()[0] == count * P
        assert memory[P * (count - 1)] == (count - 1) % 251 + 1
        assert memory[0] == GIVEN_BACK_PAGES // 2
        kept = there(store.map, count + 1) - {ZERO_SLOT}
        assert kept >= set(range(1, GIVEN_BACK_PAGES // 2 + 1))
        assert len(kept) < GIVEN_BACK_PAGES // 2 + GIVEN_BACK_PAGES, "but for a few at the end, all others went"
        server.stop()


def test_what_small_steps_have_placed_is_given_back_once_it_is_many() -> None:
    """A program that faults all the time is filled in small steps; the store must not keep what they have placed."""
    count, store = 5 * GIVEN_BACK_PAGES, PageStore(0)
    stored(store, count)
    kept = count
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        at = address_of(memoryview(store.map))
        space = LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), at, gives_back=True)
        space.placing.laid_out = True
        space.serve_fault(address + 2 * GIVEN_BACK_PAGES * P)  # in the midst: the fill comes to it later
        assert STEP_PAGES < GIVEN_BACK_PAGES
        while space.fill(Order.REST, STEP_PAGES) > 0:
            before, kept = kept, len(there(store.map, count + 1) - {ZERO_SLOT})
            assert before == kept or before - kept >= GIVEN_BACK_PAGES, "to give back is a call"
        assert right(memory, count)
        assert kept < 3 * GIVEN_BACK_PAGES
    os.close(uffd)


def test_what_is_on_its_way_is_asked_for_once_and_waited_for() -> None:
    count, store, asked = 40, PageStore(0), []
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        first = address // P
        pages = np.arange(first, first + count, dtype=np.uint64)
        supply = Supply(pages, np.full(count, MISSING), asked.append)
        server = LazyServer()
        server.add(LazySpace(uffd, supply, address_of(memoryview(store.map))))
        server.start()
        seen = ctypes.create_string_buffer(1)
        # not by Python's own means: whoever faults holds the interpreter's lock, and nobody could answer
        reader = threading.Thread(target=lambda: libc.memcpy(seen, ctypes.c_void_p(address + 20 * P), 1), daemon=True)
        reader.start()
        while not asked:
            assert reader.is_alive()
        server.arrived(supply, pages[20:24], np.arange(21, 25))
        reader.join(timeout=10)
        assert (asked, seen.raw[0]) == ([first + 20], 20 % 251 + 1)
        server.begin_fill()
        server.laid_out()
        server.arrived(supply, pages[24:], np.arange(25, count + 1))
        server.arrived(supply, pages[:20], np.arange(1, 21))
        server.filled()
        assert right(memory, count)
        server.stop()


def test_what_comes_before_the_address_space_is_known_is_not_lost() -> None:
    """CRIU hands it over while the last pages cross: they may come between its making and its being added."""
    count, store = 40, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        supply = Supply(pages, np.full(count, MISSING))
        server = LazyServer()
        server.start()
        space = LazySpace(uffd, supply, address_of(memoryview(store.map)))
        server.arrived(supply, pages[:30], np.arange(1, 31))
        wait_until(lambda: not server._arrived)  # it has heard of them
        server.add(space)
        server.arrived(supply, pages[30:], np.arange(31, count + 1))
        server.begin_fill()
        server.laid_out()
        wait_until(server._whole.is_set)
        assert right(memory, count)
        server.stop()


def test_what_never_comes_is_an_error() -> None:
    with lacking(4) as (uffd, address, _):
        pages = np.arange(address // P, address // P + 4, dtype=np.uint64)
        supply = Supply(pages, np.full(4, MISSING))
        server = LazyServer()
        server.add(LazySpace(uffd, supply, 0))
        supply.give_up()
        server.begin_fill()
        server.laid_out()
        with pytest.raises(StepFailed, match="4 pages of the service never came"):
            server.filled()
        server.stop()


def test_the_fill_begins_before_all_memory_is_laid_out() -> None:
    """CRIU hands a userfaultfd over before it maps the memory: a copy that is refused then says nothing."""
    count, store = 64, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        upper = struct.pack("<QQ", address + 32 * P, 32 * P)
        fcntl.ioctl(uffd, _UFFDIO_UNREGISTER, upper)
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        supply = Supply(pages, np.full(count, MISSING))
        server = LazyServer()
        server.add(LazySpace(uffd, supply, address_of(memoryview(store.map))))
        server.arrived(supply, pages[:20], np.arange(1, 21))
        server.begin_fill()
        wait_until(lambda: there(memory, count) == {*range(20)})
        server.arrived(supply, pages[20:50], np.arange(21, 51))
        wait_until(lambda: there(memory, count) == {*range(32)})
        fcntl.ioctl(uffd, _UFFDIO_REGISTER, upper + struct.pack("<QQ", _MODE_MISSING, 0))
        wait_until(lambda: there(memory, count) == {*range(50)})
        server.laid_out()
        server.arrived(supply, pages[50:], np.arange(51, count + 1))
        assert server.filled()[0] == count * P
        assert right(memory, count)
        server.stop()


def test_what_was_written_is_placed_first_and_what_was_written_often_before_that() -> None:
    count, store = 1000, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        written = [pages[700:710], pages[90:95], pages[702:720]]
        supply = Supply(pages, np.arange(1, count + 1), written=written)
        space = LazySpace(uffd, supply, address_of(memoryview(store.map)))
        order, sets = [], [there(memory, count)]
        while space.fill(Order.HOT, 16) > 0 or space.fill(Order.WARM, 16) > 0:
            sets.append(there(memory, count))
            order.append(sorted(sets[-1] - sets[-2]))
        once = [*range(90, 95), 700, 701, *range(710, 720)]
        assert order == [[*range(702, 710)], once[:16], once[16:]]
        while space.fill(Order.REST, 16) > 0:
            sets.append(there(memory, count))
            assert len(sets[-1] - sets[-2]) <= 16
        assert right(memory, count)
        os.close(uffd)


def test_a_fault_brings_what_lies_around_it_before_the_rest() -> None:
    count, store = 1500, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        space = LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map)))
        space.serve_fault(address + 700 * P + 17)
        at_once = there(memory, count)
        assert {700} <= at_once <= {*range(700 - AROUND_PAGES + 1, 700 + AROUND_PAGES)}
        assert space.fill(Order.READ_ON, 50) < 0, "one fault shows nothing"
        while space.fill(Order.AROUND, 50) > 0:
            pass
        assert there(memory, count) == {*range(700 - BEFORE_PAGES, 700 + FOLLOW_PAGES)}
        while space.fill(Order.REST, 50) > 0:
            pass
        assert right(memory, count)
        os.close(uffd)


def test_who_reads_on_gets_what_lies_ahead_before_hot_pages() -> None:
    count, store = 1500, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        hot = [pages[100:110]] * 2
        supply = Supply(pages, np.arange(1, count + 1), written=hot)
        space = LazySpace(uffd, supply, address_of(memoryview(store.map)))
        for page in (700, 1200):
            space.serve_fault(address + page * P)
            assert space.fill(Order.READ_ON, 8) < 0
        assert space.fill(Order.AROUND, 40) > 0
        ahead = min(set(range(1200, count)) - there(memory, count))
        space.serve_fault(address + ahead * P)
        before = there(memory, count)
        assert space.fill(Order.READ_ON, 8) > 0
        assert there(memory, count) - before <= {*range(1200, 1300)}
        assert space.fill(Order.HOT, 50) == 10
        assert {*range(100, 110)} <= there(memory, count)
        os.close(uffd)


def test_hot_pages_are_waited_for_also_those_that_come_late() -> None:
    count, store = 600, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        slots = np.arange(1, count + 1)
        late = slots[500:].copy()
        slots[500:] = MISSING
        supply = Supply(pages, slots, lambda page: None, written=[pages[10:20]] * 2)
        server = LazyServer()
        server.add(LazySpace(uffd, supply, address_of(memoryview(store.map))))
        assert not server.wait_for_hot(5), "the fill has not begun"
        server.laid_out()
        server.begin_fill()
        assert server.wait_for_hot(20)
        assert {*range(10, 20)} <= there(memory, count)
        server.arrived(supply, pages[500:], late)
        assert server.wait_for_hot(20)
        assert {*range(500, count)} <= there(memory, count)
        server.filled()
        assert right(memory, count)
        server.stop()


def test_who_waits_is_woken_when_only_pages_before_its_own_were_placed() -> None:
    """The first page is there already, then an event is to be read first: the fault must come again."""
    count, store = 8, PageStore(0)
    stored(store, count)
    with lacking(2 * count, _EVENT_REMOVE) as (uffd, address, memory):
        first = address // P + (-(address // P) % AROUND_PAGES)
        supply = Supply(np.arange(first, first + count, dtype=np.uint64), np.arange(1, count + 1))
        space = LazySpace(uffd, supply, address_of(memoryview(store.map)))
        space.placing.laid_out = True
        zeros = struct.pack("<QQQq", first * P, P, 0, 0)
        fcntl.ioctl(uffd, 0xC020AA04, zeros)
        seen = ctypes.create_string_buffer(b"x", 1)
        reader = threading.Thread(target=lambda: libc.memcpy(seen, ctypes.c_void_p((first + 2) * P), 1), daemon=True)
        reader.start()
        wait_until(lambda: "pending:\t1" in Path(f"/proc/self/fdinfo/{uffd}").read_text())
        assert len(os.read(uffd, 32)) == 32  # the fault
        dropped = ctypes.c_void_p(address + (2 * count - 1) * P)
        giver = threading.Thread(target=lambda: libc.madvise(dropped, P, mmap.MADV_DONTNEED), daemon=True)
        giver.start()
        wait_until(lambda: call_of(giver) == _MADVISE)
        space.serve_fault((first + 2) * P)
        assert there(memory, 2 * count) == {first - address // P}
        wait_until(lambda: "pending:\t1" in Path(f"/proc/self/fdinfo/{uffd}").read_text())
        kinds = [message[0] for message in (os.read(uffd, 32), os.read(uffd, 32))]
        assert sorted(kinds) == [0x12, 0x15], "the same fault again, and the event"
        giver.join(timeout=20)
        wait_until(lambda: (space.serve_fault((first + 2) * P), reader.join(0.01), not reader.is_alive())[-1])
        assert seen.raw == bytes([3])
        os.close(uffd)


def test_what_is_kept_for_processes_that_are_gone_is_dropped() -> None:
    count, store = 64, PageStore(0)
    stored(store, count)
    server = LazyServer()
    server.laid_out()
    server.begin_fill()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            with lacking(count) as (uffd, _, _):
                socket.send_fds(theirs, [b"u"], [uffd])
                theirs.recv(1)
                os._exit(0)
        _, (uffd,), _, _ = socket.recv_fds(ours, 1, 1)
        pages = np.arange(10, 10 + count, dtype=np.uint64)
        server.add(LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map))))
        ours.send(b"x")
        os.waitpid(child, 0)
        ours.close()
        theirs.close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)  # who died last is noticed with the next one
    server.stop()


def test_a_page_given_back_while_somebody_waits_for_it_reads_as_zeros() -> None:
    """Both are read in one go, and whoever gave it back goes on with that: no old page may come after."""
    count, store = 64, PageStore(0)
    stored(store, count)
    with lacking(count, _EVENT_REMOVE) as (uffd, address, memory):
        seen, lost = ctypes.create_string_buffer(b"x", 1), ctypes.c_void_p(address + 8 * P)
        # not by Python's own means: whoever faults would hold the interpreter's lock
        reader = threading.Thread(target=lambda: libc.memcpy(seen, lost, 1), daemon=True)
        reader.start()
        wait_until(lambda: "pending:\t1" in Path(f"/proc/self/fdinfo/{uffd}").read_text())
        giver = threading.Thread(target=lambda: libc.madvise(lost, 8 * P, mmap.MADV_DONTNEED), daemon=True)
        giver.start()
        wait_until(lambda: call_of(giver) == _MADVISE)
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        server = LazyServer()
        server.add(LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map))))
        server.begin_fill()
        reader.join(timeout=20)
        giver.join(timeout=20)
        server.laid_out()
        server.filled()
        assert seen.raw == b"\0"
        assert server.faults >= 1  # again, where the kernel had not yet settled the layout
        assert server.fault_s > 0
        assert 8 in there(memory, count)
        assert memory[8 * P : 16 * P] == bytes(8 * P)
        kept = [page for page in range(count) if not 8 <= page < 16]
        assert [memory[page * P] for page in kept] == [page % 251 + 1 for page in kept]
        server.stop()


def test_who_goes_on_into_memory_that_was_not_there_faults_once_for_many_pages() -> None:
    """What follows up to the next page that was there, or is on its way, and no further: as zeros that take no memory.
    A mapping that ends before that and a page that is there already end it sooner."""
    count, coming, border, ready = 2 * ZERO_PAGES, ZERO_PAGES + 300, 40, 200
    asked: list[int] = []
    with lacking(count) as (uffd, address, memory):
        first = address // P
        assert libc.mprotect(ctypes.c_void_p(address + border * P), P, mmap.PROT_READ) == 0
        fcntl.ioctl(uffd, 0xC020AA04, struct.pack("<QQQq", address + ready * P, P, 0, 0))
        supply = Supply(np.array([first + coming], np.uint64), np.array([MISSING]), asked.append)
        server = LazyServer()
        server.add(LazySpace(uffd, supply, 0))
        server.start()
        seen = ctypes.create_string_buffer(b"x", 1)
        libc.memcpy(seen, ctypes.c_void_p(address + P), 1)  # not by Python's own means, which would hold its lock
        assert seen.raw == b"\0"
        assert 1 in there(memory, count)
        assert there(memory, count) <= {*range(1, border), ready}
        for page in (*range(border + 1, coming), *range(coming + 1, count)):
            libc.memset(ctypes.c_void_p(address + page * P), 7, 8)
        assert server.faults <= 20
        assert coming not in there(memory, count)
        assert asked == []
        server.stop()


def test_memory_that_is_handed_over_after_the_fill_is_filled_too() -> None:
    """Who is told that all is in place lets the source go: what is absent then would read as zeros."""
    count, store = 64, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        server = LazyServer()
        server.begin_fill()
        server.laid_out()
        server.filled()
        server.add(LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map))))
        server.begin_fill()
        server.laid_out()
        assert server.filled()[0] == count * P
        assert right(memory, count)
        server.stop()


def test_what_was_waited_for_last_time_comes_before_the_rest() -> None:
    """Where the program had to wait, and where it read on, is known once it has arrived: next time that comes first."""
    count, store = 1500, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        first = address // P
        pages = np.arange(first, first + count, dtype=np.uint64)
        space = LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map)))
        space.serve_fault(address + 900 * P)
        waited = there(memory, count)
        assert space.fill(Order.REST, 50) > 0
        assert space.fill(Order.AROUND, 40) > 0
        ahead = min(set(range(900, count)) - there(memory, count))
        by_itself = there(memory, count) - waited
        space.serve_fault(address + ahead * P)
        while space.fill(Order.READ_ON, STEP_PAGES) > 0:
            pass
        missed = [page - first for start, n in space.missed().tolist() for page in range(start, start + n)]
        assert set(missed[: len(waited)]) == waited
        assert set(missed) == there(memory, count) - by_itself, "nobody waited for what the fill brought by itself"
        assert {*range(ahead, ahead + FOLLOW_PAGES)} <= set(missed)
        os.close(uffd)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        needed = np.array([[address // P + 700, 30], [address // P + 100, 10], [5, 5]])
        space = LazySpace(
            uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map)), needed=needed
        )
        assert space.fill(Order.NEEDED, 30) == 30
        assert there(memory, count) == {*range(700, 730)}
        assert space.fill(Order.NEEDED, 30) == 10
        assert space.fill(Order.NEEDED, 30) < 0
        assert there(memory, count) == {*range(700, 730), *range(100, 110)}
        os.close(uffd)


def test_who_always_has_something_to_say_keeps_neither_faults_nor_the_fill_waiting() -> None:
    count, store = 64, PageStore(0)
    stored(store, count)
    with lacking(count) as (uffd, address, memory):
        pages = np.arange(address // P, address // P + count, dtype=np.uint64)
        server = LazyServer()  # its thread is not started: the turns are taken here
        server._take_in(LazySpace(uffd, Supply(pages, np.arange(1, count + 1)), address_of(memoryview(store.map))))
        seen = ctypes.create_string_buffer(b"x", 1)
        reader = threading.Thread(target=lambda: libc.memcpy(seen, ctypes.c_void_p(address + 40 * P), 1), daemon=True)
        reader.start()
        wait_until(lambda: "pending:\t1" in Path(f"/proc/self/fdinfo/{uffd}").read_text())
        server._ring()  # and nobody hears it
        turns = [library().serve(ctypes.byref(server._turns), 0) for _ in range(3)]
        assert turns == [Answer.BELL] * 3
        reader.join(timeout=20)
        assert seen.raw == bytes([41])
        server._turns.filling = Filling.ALL_PAGES
        before = len(there(memory, count))
        for _ in range(3):
            library().serve(ctypes.byref(server._turns), 0)
        assert len(there(memory, count)) > before
        server.stop()


def test_a_kernel_that_cannot_say_what_happened_is_an_error() -> None:
    """For want of descriptors, say, when a child was forked: without it nobody knows whose pages are whose."""
    with socket.create_server(("127.0.0.1", 0)) as unreadable, socket.create_connection(unreadable.getsockname()):
        server = LazyServer()
        server.add(LazySpace(os.dup(unreadable.fileno()), Supply(np.array([5], np.uint64), np.array([MISSING])), 0))
        server.begin_fill()
        server.laid_out()
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            server.filled()
        server.stop()
