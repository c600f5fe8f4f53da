"""Flags of mappings, foreseen: as a table, and against the kernel."""

from __future__ import annotations

import io
import os

import pytest
from tests.memory.targets import program

from whimbrel.memory.flagwatch import FlagWatch
from whimbrel.memory.vmaflags import FlagsBefore, flags_before, smaps_now
from whimbrel.memory.vmas import open_proc, read_proc

HEAP = "1000-3000 rw-p 00000000 00:00 0          [heap]"
FILE = "10000-14000 r--p 00002000 fe:00 77       /usr/lib/some library.so"
ADVISED = "20000-30000 rw-p 00000000 00:00 0"
SECRET = "60000-61000 rw-p 00000000 00:00 0"
GETRANDOM = "62000-63000 rw-p 00000000 00:00 0"
VDSO = "7000000-7002000 r-xp 00000000 00:00 0    [vdso]"
STACK = "8000000-8010000 rw-p 00000000 00:00 0   [stack]"
FLAGS = {
    HEAP: "rd wr mr mw me ac",
    FILE: "rd mr mw me",
    ADVISED: "rd wr mr mw me ac nh",
    SECRET: "rd wr mr mw me ac dd",
    GETRANDOM: "rd wr mr mw me nr wf dd dp",
    VDSO: "rd ex mr mw me de io pf",
    STACK: "rd wr mr mw me gd ac",
}


def text_of(flags: dict[str, str]) -> bytes:
    return "".join(f"{line}\nSize:  4 kB\nVmFlags: {has} \n" for line, has in flags.items()).encode()


def before() -> FlagsBefore:
    found = flags_before(text_of(FLAGS))
    assert found is not None
    return found


KEPT = (SECRET, GETRANDOM)


def flags_now(*lines: str, kept: tuple[str, ...] = KEPT) -> list[str] | None:
    """The flags in order of the lines, after those of `kept`; also checks that the lines themselves are passed on."""
    text = smaps_now("\n".join(kept + lines).encode() + b"\n", before())
    if text is None:
        return None
    assert [row for row in text.decode().splitlines() if row in kept] == list(kept)
    text = b"".join(text.splitlines(keepends=True)[2 * len(kept) :])
    rows = text.decode().splitlines()
    assert rows[0::2] == list(lines)
    assert all(row.startswith("VmFlags: ") for row in rows[1::2])
    return [row.removeprefix("VmFlags: ").strip() for row in rows[1::2]]


def test_nothing_changed() -> None:
    assert flags_now(*FLAGS, kept=()) == list(FLAGS.values())


def test_what_is_kept_out_of_core_dumps_must_be_where_it_was() -> None:
    read_only = SECRET.replace("rw-p", "r--p")
    assert flags_now(HEAP, kept=(read_only, GETRANDOM)) == [FLAGS[HEAP]]
    for kept in (
        (),
        KEPT[:1],
        KEPT[1:],
        (SECRET.replace("61000", "60800"), GETRANDOM),
        (SECRET, "70000-71000 rw-p 0 0:0 0"),
    ):
        assert flags_now(HEAP, kept=kept) is None


def test_a_process_without_mappings_is_dead() -> None:
    assert smaps_now(b"", before()) is None


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (HEAP.replace("3000", "9000"), FLAGS[HEAP]),
        (STACK.replace("8000000", "7f00000"), FLAGS[STACK]),
        (ADVISED.replace("20000-30000", "24000-28000"), FLAGS[ADVISED]),
        ("24000-25000 r--p 00000000 00:00 0", FLAGS[ADVISED]),
        ("40000-50000 rw-p 00000000 00:00 0", ""),
        ("40000-50000 rw-p 00000000 00:00 0     [anon:arena]", ""),
        (FILE.replace("10000-14000", "12000-14000").replace("00002000", "00004000"), FLAGS[FILE]),
        (VDSO.replace("7000000-7002000", "6000000-6002000"), FLAGS[VDSO]),
    ],
    ids=("heap", "stack", "part", "permissions", "new", "named", "file", "vdso"),
)
def test_moved_and_new(line: str, flags: str) -> None:
    assert flags_now(line) == [flags]


@pytest.mark.parametrize(
    "line",
    [
        FILE.replace("77", "78"),
        FILE.replace("00002000", "00003000"),
        FILE.replace("10000-14000", "50000-54000"),
        "90000-91000 rw-s 00000000 00:05 3 /dev/some device",
        "7004000-7005000 r--p 00000000 00:00 0 [vvar]",
    ],
    ids=("inode", "offset", "elsewhere", "device", "kernel"),
)
def test_what_cannot_be_known(line: str) -> None:
    assert flags_now(HEAP, line) is None


@pytest.mark.parametrize("flag", ["gd", "lo", "ht", "dc", "wf", "io", "pf", "ss"])
def test_essential_flags_are_not_foreseen(flag: str) -> None:
    assert flags_before(text_of({**FLAGS, ADVISED: f"{FLAGS[ADVISED]} {flag}"})) is None


def test_text_that_is_cut_short() -> None:
    assert flags_before(b"") is None
    assert flags_before(text_of(FLAGS).rpartition(b"VmFlags")[0]) is None


ACTS = {
    "madvise": ("check(libc.madvise(area, 4 * P, 10))", False),
    "wipe on fork": ("check(libc.madvise(area, 4 * P, 18))", False),
    "no core dump": ("check(libc.madvise(area, 4 * P, 16))", False),
    "guard": ("libc.madvise(area, 4 * P, 102)", False),  # whether the kernel knows it or not
    "of itself by number": (
        "vec = (ctypes.c_uint64 * 2)(area, P); me = os.pidfd_open(os.getpid()); "
        "libc.syscall(440, me, ctypes.byref(vec), 1, 18, 0)",
        False,
    ),
    "by a thread that was started since": (
        "thread = threading.Thread(target=lambda: check(libc.madvise(area, P, 10))); thread.start(); thread.join()",
        False,
    ),
    "mlock": ("check(libc.mlock(area, P))", False),
    "mlockall": ("check(libc.mlockall(2))", False),
    "locked mapping": ("new(4, flags=PRIVATE | 0x2000)", False),
    "growing mapping": ("new(4, flags=PRIVATE | 0x100)", False),
    "nothing essential": (
        "check(libc.madvise(area, 4 * P, 4)); check(libc.munmap(new(600), 600 * P)); check(libc.mprotect(area, P, 1)); "
        "fill(new(32, flags=NORESERVE), 32); threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        True,
    ),
}


@pytest.mark.parametrize("act", ACTS)
def test_watch(act: str) -> None:
    code, silent = ACTS[act]
    with program(f"area = new(16); fill(area, 16)\ndef act():\n    {code}\nsteps(act)") as child:
        watch = FlagWatch([child.pid])
        child.step(0)
        try:
            assert watch.silent() is silent
        finally:
            watch.close()


def test_of_many_threads_the_whole_host_is_watched() -> None:
    code = """
area = new(16)
for _ in range(60):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
steps(lambda: check(libc.madvise(area, P, 10)))
"""
    with program(code) as child:
        watch = FlagWatch([child.pid])
        child.step(0)
        try:
            assert not watch.silent()
        finally:
            watch.close()


def test_processes_that_come_later_are_watched_too() -> None:
    with program("area = new(16)\nsteps(lambda: check(libc.madvise(area, P, 10)))") as child:
        watch = FlagWatch([os.getpid()])
        try:
            watch.add([child.pid])
            child.step(0)
            assert not watch.silent()
        finally:
            watch.close()


CRIU_READS = set(["gd", "lo", "nr", "ht", "dp", "sr", "rr", "dc", "dd", "mg", "hg", "nh", "wf", "io", "pf", "ss"])


def as_criu_reads(smaps: bytes) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    line = ""
    for row in io.StringIO(smaps.decode()):
        if row.startswith("VmFlags:"):
            found[line] = set(row.split()[1:]) & CRIU_READS
        elif "-" in row.split(" ", 1)[0]:
            line = row.rstrip()
    return found


def test_against_the_kernel() -> None:
    """A program that allocates, frees, protects and starts threads between the two looks."""
    code = """
keep = [new(64) for _ in range(20)]
for at in keep:
    fill(at, 64)
check(libc.madvise(keep[3], 64 * P, 14))
def act():
    for at in keep[::3]:
        check(libc.munmap(at, 32 * P))
    check(libc.mprotect(keep[1], 8 * P, 1))
    keep.extend(new(100) for _ in range(5))
    check(0 if libc.sbrk(1 << 20) > 0 else -1)
    bytes(bytearray(20 << 20))
steps(act)
"""
    with program(code) as child:
        directory = open_proc(child.pid)
        found = flags_before(read_proc(directory, "smaps"))
        assert found is not None
        child.step(0)
        told = smaps_now(read_proc(directory, "maps"), found)
        assert told is not None
        kernels = read_proc(directory, "smaps")
        os.close(directory)
    assert as_criu_reads(told) == as_criu_reads(kernels)
