"""Waiting for a moment in which nobody in a service works, on real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from whimbrel.migrate.quiet import until_quiet

IDLE = "print(flush=True); input()"
WORKS_ON = "print(flush=True)\nwhile True: pass"
WORKS_A_WHILE = (
    "import time\nprint(flush=True)\nend = time.monotonic() + 0.2\nwhile time.monotonic() < end: pass\ninput()"
)
ANOTHER_THREAD_WORKS = """
import threading
def work():
    print(flush=True)
    while True: pass
threading.Thread(target=work, daemon=True).start()
input()
"""
BAD_NAME = "open('/proc/self/comm', 'w').write(') R (')\nprint(flush=True)\ninput()"


@contextmanager
def running(*programs: str) -> Iterator[list[int]]:
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for program in programs
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_who_sleeps_is_not_waited_for() -> None:
    with running(IDLE, BAD_NAME) as pids:
        assert until_quiet(lambda: pids, 20)


@pytest.mark.parametrize("at_work", [WORKS_ON, ANOTHER_THREAD_WORKS])
def test_who_works_on_is_waited_for_so_long_and_no_longer(at_work: str) -> None:
    with running(IDLE, at_work) as pids:
        began_s = time.monotonic()
        assert not until_quiet(lambda: pids, 0.1)
        assert time.monotonic() - began_s >= 0.1


def test_the_end_of_the_work_is_the_moment() -> None:
    with running(WORKS_A_WHILE) as pids:
        assert until_quiet(lambda: pids, 20)
        with open(f"/proc/{pids[0]}/stat") as stat:
            assert stat.read().rpartition(")")[2].split()[0] == "S"


def test_who_comes_meanwhile_is_asked_too() -> None:
    with running(WORKS_A_WHILE, WORKS_ON) as (first, second):
        seen = [[first], [first, second]]
        assert not until_quiet(lambda: seen.pop(0) if len(seen) > 1 else seen[0], 0.5)


def test_who_has_gone_is_not_waited_for() -> None:
    with running(WORKS_ON) as pids:
        pass
    assert until_quiet(lambda: pids, 20)
