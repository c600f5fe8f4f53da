"""What CRIU sees of a process in place of the kernel's own files; and that migrations of the service use it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.memory.targets import Program, program, states, wait_for
from tests.memory.test_memory_flags import as_criu_reads
from tests.migrate.conftest import Running
from tests.migrate.disturb import DESTINATION, SOURCE
from whimbrel.checkpoint.images import PE_LAZY, PE_PARENT, PE_PRESENT, Pagemap
from whimbrel.checkpoint.swrk import CriuWorker, launch_child
from whimbrel.memory.processes import read_status
from whimbrel.memory.ranges import EMPTY, Ranges, as_ranges, intersect, total_bytes
from whimbrel.memory.tracked import has_guards, populated
from whimbrel.memory.uffd import Scanner
from whimbrel.memory.vmas import open_proc, private_mappings, read_proc
from whimbrel.migrate.retelling import Retelling, with_holes
from whimbrel.model.migration import Outcome
from whimbrel.runtime.mounts import in_mounts_of

CODE = """
area = new(4096); fill(area, 4096, every=2)
def quiet():
    check(libc.munmap(area, 100 * P)); fill(new(300), 300)
def essential():
    check(libc.madvise(area + 200 * P, 16 * P, 10))
steps(quiet, essential)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[CriuWorker]:
    worker = CriuWorker(netns=Path("/proc/self/ns/net"), run_dir=tmp_path, launch=launch_child)
    worker.warm_up()
    yield worker
    worker.kill()


@contextmanager
def stopped(child: Program) -> Iterator[int]:
    """Yields its /proc/PID, open."""
    os.kill(child.pid, signal.SIGSTOP)
    directory = open_proc(child.pid)
    try:
        while read_status(directory).state != "T":
            pass
        yield directory
    finally:
        os.close(directory)


def seen_by(worker: CriuWorker, pid: int) -> int:
    """The worker's /proc/PID, open."""
    return in_mounts_of(worker.pid, lambda: open_proc(pid))


def pages_seen(directory: int, of: Ranges) -> Ranges:
    pagemap = os.open("pagemap", os.O_RDONLY, dir_fd=directory)
    try:
        found = [Scanner().present(pagemap, *row) for row in of.tolist()]
    finally:
        os.close(pagemap)
    return intersect(np.concatenate(found), of)


def sleepers() -> list[int]:
    """Our own children that only sleep."""
    children = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")]


def test_a_process_that_stands_still(worker: CriuWorker, tmp_path: Path) -> None:
    retelling = Retelling(tmp_path, "one")
    try:
        with program(CODE) as child:
            retelling.foresee([child.pid])
            child.step(0)
            with stopped(child) as kernels:
                assert retelling.tell(worker.pid, pages=True) == {child.pid}
                seen = seen_by(worker, child.pid)
                try:
                    assert as_criu_reads(read_proc(seen, "smaps")) == as_criu_reads(read_proc(kernels, "smaps"))
                    private = private_mappings(kernels)
                    exists = populated(kernels, private, Scanner())
                    assert total_bytes(exists) > 2000 * 4096
                    assert total_bytes(pages_seen(seen, private.rows)) < 200 * 4096  # the sleeper's own
                finally:
                    os.close(seen)
                (present,) = retelling.present().values()
                assert np.array_equal(present, exists)
        assert len(sleepers()) == 1
    finally:
        retelling.close()
    retelling.close()
    assert sleepers() == []
    assert list((tmp_path / "criu-run").glob("retold-*")) == []


def test_what_was_not_foreseen_is_read_from_the_kernel(worker: CriuWorker, tmp_path: Path) -> None:
    retelling = Retelling(tmp_path, "two")
    try:
        with program(CODE) as child:
            retelling.foresee([child.pid])
            child.step(1)
            with stopped(child) as kernels:
                assert retelling.tell(worker.pid, pages=True) == set()
                assert retelling.present() == {}
                seen = seen_by(worker, child.pid)
                try:
                    assert read_proc(seen, "smaps") == read_proc(kernels, "smaps")
                finally:
                    os.close(seen)
    finally:
        retelling.close()


def test_processes_that_come_and_go(worker: CriuWorker, tmp_path: Path) -> None:
    retelling = Retelling(tmp_path, "three")
    try:
        with program(CODE) as stays, program(CODE) as goes, program(CODE) as comes:
            retelling.foresee([stays.pid, goes.pid])
            goes.process.kill()
            goes.process.wait()
            with stopped(stays), stopped(comes) as kernels:
                assert retelling.tell(worker.pid, pages=True) == {stays.pid}
                seen = seen_by(worker, comes.pid)
                try:
                    rows = private_mappings(kernels).rows
                    assert np.array_equal(pages_seen(seen, rows), pages_seen(kernels, rows))
                finally:
                    os.close(seen)
    finally:
        retelling.close()


def test_who_died_is_left_out(worker: CriuWorker, tmp_path: Path) -> None:
    """Also while nobody has taken its number back, when its lists of mappings are empty."""
    retelling = Retelling(tmp_path, "four")
    try:
        with program(CODE) as stays, program(CODE) as dies:
            retelling.foresee([stays.pid, dies.pid])
            dies.process.kill()
            wait_for(lambda: states(dies.pid) == ["Z"], "the process does not die")
            with stopped(stays):
                assert retelling.tell(worker.pid, pages=True) == {stays.pid}
                assert list(retelling.present()) == [stays.pid]
    finally:
        retelling.close()


def test_guard_regions_stay_to_be_seen(worker: CriuWorker, tmp_path: Path) -> None:
    """CRIU finds them in the page map."""
    code = "area = new(64); fill(area, 64)\nprint('ok' if libc.madvise(area, 4 * P, 102) == 0 else 'no', flush=True)\n"
    retelling = Retelling(tmp_path, "five")
    try:
        with program("print('ready', flush=True)\n" + code + "steps()") as child:
            assert child.process.stdout is not None
            knows = child.process.stdout.readline().strip() == "ok"
            child.expect("ready")
            retelling.foresee([child.pid])
            with stopped(child) as kernels:
                if not knows or not has_guards(kernels, Scanner()):
                    pytest.skip("this kernel has no guard regions that it can list (Linux 6.15)")
                assert retelling.tell(worker.pid, pages=True) == set()
                seen = seen_by(worker, child.pid)
                try:
                    assert has_guards(seen, Scanner())
                    assert as_criu_reads(read_proc(seen, "smaps")) == as_criu_reads(read_proc(kernels, "smaps"))
                    assert b"Size" not in read_proc(seen, "smaps")  # told all the same
                finally:
                    os.close(seen)
    finally:
        retelling.close()


def test_holes_in_place_of_what_criu_saw() -> None:
    theirs = Pagemap(
        7,
        3,
        as_ranges([(0x1000, 0x3000), (0x5000, 0x6000), (0x8000, 0x9000), (0x20000, 0x21000)]),
        np.array([PE_PARENT, PE_PRESENT, PE_LAZY, PE_PARENT], np.uint32),
    )
    rows = as_ranges([(0x1000, 0xA000)])
    found = with_holes(theirs, rows, as_ranges([(0x2000, 0x7000)]))
    assert (found.ns_pid, found.pages_id) == (7, 3)
    assert found.ranges.tolist() == [[0x2000, 0x5000], [0x5000, 0x6000], [0x6000, 0x7000], [0x20000, 0x21000]]
    assert found.flags.tolist() == [PE_PARENT, PE_PRESENT, PE_PARENT, PE_PARENT]
    assert with_holes(theirs, rows, EMPTY).ranges.tolist() == [[0x5000, 0x6000], [0x20000, 0x21000]]


def test_migrations_are_told(running: Running) -> None:
    """Not only when nothing else helps: every process of the service that was there before the freeze."""
    record = running.migrate(DESTINATION)
    assert record.outcome is Outcome.DONE, record.error
    text = (running.lab.state_dir(SOURCE) / "agent.log").read_text()
    told = [line for line in text.splitlines() if "CRIU is told of the memory" in line][-1]
    fields = dict(part.split("=") for part in told.split() if "=" in part)
    assert int(fields["pages"]) == int(fields["flags"]) == int(fields["processes"]) > 0
