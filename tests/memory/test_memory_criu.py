"""CRIU's own list of pages of a process against ours: nothing that it expects from us is missing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from targets import Shadow, pages, program, stop

from whimbrel.checkpoint.images import read_pagemap, restart_ranges
from whimbrel.memory.tracker import TreeTracker
from whimbrel.memory.vmas import read_vmas

CRIU = Path("/opt/whimbrel/bin/criu")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for CRIU"),
    pytest.mark.skipif(not CRIU.exists(), reason=f"no CRIU at {CRIU}: run scripts/setup"),
]

CODE = """
a = new(500); fill(a, 300)
locked = new(50); fill(locked, 50); check(libc.mlock(locked, 50 * P))
file = os.memfd_create("x"); os.pwrite(file, dice.randbytes(300 * P), 0)
own = libc.mmap(0, 300 * P, 3, 2, file, 0); fill(own, 300, 2)
none = new(90); fill(none, 60); check(libc.mprotect(none, 90 * P, 0))
guarded = new(60); fill(guarded, 60); libc.madvise(guarded + 9 * P, 9 * P, 102)
threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
def change():
    fill(a, 400, 3); fill(own, 300, 3); fill(new(40), 40)
    check(libc.madvise(own, 40 * P, 4)); check(libc.madvise(a, 40 * P, 4))
    [ctypes.string_at(a + n * P, 1) for n in range(20)]
if not os.fork(): change(); time.sleep(99)
steps(change)
"""


def test_every_page_that_criu_lists_was_reported(tmp_path: Path) -> None:
    with program(CODE) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        shadow.round()
        child.step(0)
        shadow.round()
        members = stop(child.pid)
        done = subprocess.run(
            [
                CRIU,
                "dump",
                "-t",
                str(child.pid),
                "-D",
                tmp_path,
                "--leave-stopped",
                "--shell-job",
                "-o",
                "log",
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (tmp_path / "log").read_text()[-3000:]
        # After CRIU, as in a migration: it patches a system call into a page of text and back; from
        # then on that page is the process's own.
        shadow.round(final=True)
        listed: set[int] = set()
        for pid in members:
            theirs = pages(read_pagemap(tmp_path, pid).ranges)
            kernels = {
                page
                for vma in read_vmas(pid)
                if vma.name in ("[vdso]", "[vvar]", "[vvar_vclock]")
                for page in range(vma.start, vma.end, 4096)
            }
            assert len(theirs) > 500
            assert theirs - kernels <= shadow.pages[pid].keys()
            listed |= theirs
            os.kill(pid, signal.SIGCONT)
        awaited = pages(restart_ranges(tmp_path))
        assert len(awaited) >= 2, "of the main thread, which forked children inherit, and of the other"
        assert awaited <= listed
        shadow.verify(child.pid)
