"""Range arithmetic against sets of pages, and copying pages that may be gone."""

from __future__ import annotations

import itertools
import mmap
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from targets import PAGE, pages, program, wait_for

from whimbrel.memory import peek, ranges
from whimbrel.memory.batches import ReadAhead
from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.processes import tree_of
from whimbrel.memory.tracker import ProcessPages
from whimbrel.memory.vmas import parse_maps, parse_smaps, read_vmas, trackable

rows = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=8).map(
    lambda pairs: ranges.as_ranges((start * PAGE, (start + count) * PAGE) for start, count in pairs)
)


def assert_tidy(some: ranges.Ranges) -> None:
    assert some.dtype == np.uint64
    assert some.shape == (len(some), 2)
    flat = some.ravel().tolist()
    assert flat == sorted(set(flat)), "sorted, disjoint, neighbours joined"


@given(rows, rows)
def test_union(one: ranges.Ranges, two: ranges.Ranges) -> None:
    both = ranges.union(one, two)
    assert pages(both) == pages(one) | pages(two)
    assert_tidy(both)
    assert ranges.total_bytes(both) == len(pages(both)) * PAGE


@given(rows, rows)
def test_intersect(one: ranges.Ranges, two: ranges.Ranges) -> None:
    one, two = ranges.union(one), ranges.union(two)
    assert pages(ranges.intersect(one, two)) == pages(one) & pages(two)
    hit = ranges.touched(one, two).tolist()
    assert hit == [bool(pages(one[n : n + 1]) & pages(two)) for n in range(len(one))]


@given(rows, st.integers(1, 5), st.integers(1, 9))
def test_split_and_joined(some: ranges.Ranges, piece: int, gap: int) -> None:
    cut = ranges.split(some, piece * PAGE)
    assert [page for row in cut.tolist() for page in range(*row, PAGE)] == [
        page for row in some.tolist() for page in range(*row, PAGE)
    ]
    assert all(end - start <= piece * PAGE for start, end in cut.tolist())
    tidy = ranges.union(some)
    runs = ranges.joined(tidy, gap * PAGE)
    assert pages(tidy) <= pages(ranges.as_ranges(runs))
    assert all(later[0] - earlier[1] >= gap * PAGE for earlier, later in itertools.pairwise(runs))


def test_which_mappings_cross_by_us() -> None:
    text = b"""\
55aa00000000-55aa00001000 r-xp 00000000 08:01 12                         /usr/bin/x
55aa00010000-55aa00020000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f0000001000-7f0000002000 ---p 00000000 00:00 0
7f0000002000-7f0000003000 rw-p 00000000 00:00 0                          [anon:glibc: malloc]
7f0000003000-7f0000004000 rw-s 00000000 00:01 99                         /dev/zero (deleted)
7f0000004000-7f0000005000 rw-p 00001000 08:01 12                         /usr/bin/x
7f0000005000-7f0000006000 rw-p 00000000 00:0f 55                         /anon_hugepage (deleted)
7f0000006000-7f0000007000 rw-p 00000000 00:00 0                          [stack]
7f0000007000-7f0000008000 r--p 00000000 00:00 0                          [vvar]
7f0000008000-7f0000009000 r--p 00000000 00:00 0                          [vvar_vclock]
7f0000009000-7f000000a000 r-xp 00000000 00:00 0                          [vdso]
7f000000a000-7f000000b000 r--p 00000000 00:00 0                          [uprobes]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""
    ours = [vma.name for vma in parse_maps(text) if trackable(vma)]
    assert ours == ["/usr/bin/x", "[heap]", "", "", "[anon:glibc: malloc]", "/usr/bin/x", "[stack]"]
    line = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr %s\n"
    for flag, expected in ((b"", True), (b"lo", True), (b"ht", False), (b"dp", True), (b"uw", True)):
        (vma,) = parse_smaps(line % flag)
        assert trackable(vma) is expected
        assert vma.registered is (flag == b"uw")


def test_own_memory_is_read_whole() -> None:
    with mmap.mmap(-1, 3000 * PAGE) as memory:
        view = np.frombuffer(memory, dtype=np.uint8)
        base = view.ctypes.data
        memory.write(os.urandom(3000 * PAGE))
        every_other = ranges.as_ranges((base + n * PAGE, base + (n + 1) * PAGE) for n in range(0, 3000, 2))
        assert len(every_other) > peek.IOV_MAX
        buffer = bytearray(1500 * PAGE + 5)
        assert len(read_pages_into(os.getpid(), every_other, buffer)) == 0
        want = view.reshape(3000, PAGE)[::2].tobytes()
        assert buffer == want + bytes(5)
        with pytest.raises(ValueError, match="writable buffer of"):
            read_pages_into(os.getpid(), every_other, bytearray(5))
        with pytest.raises(ValueError, match="writable"):
            read_pages_into(os.getpid(), every_other[:1], memoryview(bytes(PAGE)))
        del view


SHORT_AND_LONG = ((0, 2), (4, 80), (82, 120), (121, 122), (123, 450), (460, 461), (480, 900), (903, 904))


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read the memory of others")
def test_reading_a_forked_tree_leaves_its_pages_shared() -> None:
    code = """
a = new(2000)
fill(a, 2000)
print(a, flush=True)
child = os.fork()
steps()
"""

    def shared(pid: int, at: int) -> bool:
        """Pagemap's bit 56: mapped by one process only."""
        with open(f"/proc/{pid}/pagemap", "rb") as file:
            entries = np.frombuffer(os.pread(file.fileno(), 2000 * 8, at // PAGE * 8), np.uint64)
        return not (entries >> np.uint64(56) & np.uint64(1)).any()

    with pytest.MonkeyPatch.context() as patch:
        told: list[int] = []
        patch.setattr("targets.Program.expect", lambda self, _: told.append(int(self.process.stdout.readline())))
        with program(code) as parent:
            wait_for(lambda: len(tree_of(parent.pid)) == 2, "the child")
            row = ranges.as_ranges([(told[0], told[0] + 2000 * PAGE)])
            dirty = [ProcessPages(pid, pid, row) for pid in tree_of(parent.pid)]
            assert all(shared(process.pid, told[0]) for process in dirty)
            parts = [bytes(batch.contents) for batch in ReadAhead().all_of(dirty)]
            contents = b"".join(parts)
            assert contents[: 2000 * PAGE] == contents[2000 * PAGE :]
            assert any(contents)
            assert all(shared(process.pid, told[0]) for process in dirty)


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read the memory of others")
def test_pages_that_are_gone_or_forbidden() -> None:
    code = """
a = new(1000)
for n in range(1000): ctypes.memset(a + n * P, n % 251 + 1, P)
check(libc.munmap(a + 100 * P, 300 * P)); check(libc.mprotect(a + 500 * P, 200 * P, 0))
print(a, flush=True)
steps()
"""
    with pytest.MonkeyPatch.context() as patch:
        told: list[int] = []
        patch.setattr("targets.Program.expect", lambda self, _: told.append(int(self.process.stdout.readline())))
        with program(code) as child:
            (a,) = told
            rows = ranges.as_ranges((a + n * PAGE, a + (n + 2) * PAGE) for n in range(0, 1000, 4))
            buffer = np.full(500 * PAGE, 0xEE, dtype=np.uint8)
            missing = read_pages_into(child.pid, rows, buffer)
            assert pages(missing) == {page for page in pages(rows) if 100 <= (page - a) // PAGE < 400}
            for index, page in enumerate(sorted(pages(rows))):
                n = (page - a) // PAGE
                value = 0 if 100 <= n < 400 else n % 251 + 1
                assert (buffer[index * PAGE : (index + 1) * PAGE] == value).all(), n
            assert any(vma.perms == "---p" and vma.start == a + 500 * PAGE for vma in read_vmas(child.pid))
            mixed = ranges.as_ranges((a + first * PAGE, a + last * PAGE) for first, last in SHORT_AND_LONG)
            buffer = np.empty((len(pages(mixed)) + 1) * PAGE, dtype=np.uint8)
            for keep_shared in (False, True):
                buffer[:] = 0xEE
                missing = read_pages_into(child.pid, mixed, buffer, keep_shared=keep_shared)
                assert pages(missing) == {page for page in pages(mixed) if 100 <= (page - a) // PAGE < 400}
                for index, page in enumerate(sorted(pages(mixed))):
                    n = (page - a) // PAGE
                    value = 0 if 100 <= n < 400 else n % 251 + 1
                    assert (buffer[index * PAGE : (index + 1) * PAGE] == value).all(), n
                assert (buffer[-PAGE:] == 0xEE).all()
    assert pages(read_pages_into(child.pid, rows, buffer, keep_shared=True)) == pages(rows)
    assert pages(read_pages_into(child.pid, rows, buffer)) == pages(rows), "the process is gone"
    with pytest.raises(ProcessLookupError):
        read_vmas(child.pid)
