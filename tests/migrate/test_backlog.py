"""What is left for after the resume goes once, in order, whoever takes it."""

from __future__ import annotations

import numpy as np

from whimbrel.memory.codecs import Coded
from whimbrel.memory.ranges import as_ranges, total_bytes
from whimbrel.memory.store import pages_of
from whimbrel.memory.tracker import ProcessPages
from whimbrel.migrate.backlog import Backlog, Portions
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES

PID, NS_PID = 4000, 1


class Wire(PageChannel):
    """Notes which pages it was given."""

    def __init__(self) -> None:
        self.pages: list[int] = []

    def send_pages(self, ns_pid: int, coded: Coded) -> None:
        self.pages += (coded.runs[:, 0] // np.uint64(PAGE_BYTES)).tolist()


def part(first: int, end: int) -> ProcessPages:
    return ProcessPages(PID, NS_PID, as_ranges([(first * PAGE_BYTES, end * PAGE_BYTES)]))


def taken(backlog: Backlog, pages: int = 4) -> list[int]:
    portion = backlog.take(pages * PAGE_BYTES)
    return [] if portion is None else pages_of(portion.ranges).tolist()


def test_the_first_part_goes_first_and_each_page_once() -> None:
    backlog = Backlog([part(20, 23), part(10, 16)])
    assert [taken(backlog) for _ in range(4)] == [[10, 20, 21, 22], [11, 12, 13, 14], [15], []]


def test_what_was_asked_for_does_not_go_again() -> None:
    backlog, wire = Backlog([part(10, 30)]), Wire()
    backlog.answer(wire, NS_PID, 12)
    assert taken(backlog, 20) == [10, 11, *range(20, 30)], "eight pages went as the answer"
    backlog.answer(wire, NS_PID, 25)
    backlog.answer(wire, NS_PID, 99)
    assert len(wire.pages) <= 8, "neither again nor what nobody has"
    assert backlog.left_bytes == 0


def test_after_a_cut_everything_goes_again() -> None:
    backlog = Backlog([part(10, 16)])
    assert taken(backlog) == [10, 11, 12, 13]
    backlog.all_again()
    assert taken(backlog, 8) == list(range(10, 16))


def test_portions_end_when_it_is_enough() -> None:
    backlog = Backlog([part(0, 10)])
    sizes = iter([3, 4, 0])
    portions = Portions(backlog, lambda: next(sizes) * PAGE_BYTES)
    assert [total_bytes(one.ranges) // PAGE_BYTES for one in portions] == [3, 4]
    assert backlog.left_bytes == 3 * PAGE_BYTES
