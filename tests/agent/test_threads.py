"""Blocking steps side by side."""

from __future__ import annotations

import asyncio
import threading

import pytest

from whimbrel.agent.threads import both, in_thread


async def test_both_are_under_way_at_once() -> None:
    meeting = threading.Barrier(2, timeout=10)
    first, second = await both(in_thread(meeting.wait), in_thread(meeting.wait))
    assert {first, second} == {0, 1}


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_when_one_fails_the_other_has_ended_before_that_is_told(failing: str) -> None:
    failed, ended = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("no")

    def last() -> None:
        assert failed.wait(10)
        threading.Event().wait(0.1)
        ended.set()

    steps = [in_thread(fail), in_thread(last)]
    with pytest.raises(ValueError, match="no"):
        await both(*(steps if failing == "first" else steps[::-1]))
    assert ended.is_set()


async def test_a_cancelled_caller_waits_for_both() -> None:
    begun, ended = threading.Barrier(3, timeout=10), threading.Semaphore(0)

    def step() -> None:
        begun.wait()
        threading.Event().wait(0.1)
        ended.release()

    caller = asyncio.create_task(both(in_thread(step), in_thread(step)))
    await asyncio.to_thread(begun.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.acquire(blocking=False)
    assert ended.acquire(blocking=False)
