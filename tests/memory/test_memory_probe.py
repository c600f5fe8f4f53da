"""Two rounds of the tracker over a running service: what there is, and what it writes."""

from __future__ import annotations

import os

import pytest
from targets import PAGE, program

from whimbrel.migrate.probe import probed

pytestmark = pytest.mark.real

WRITER = """
a = new(3000)
fill(a, 3000)
def write():
    while True:
        fill(a, 50)
        time.sleep(0.001)
threading.Thread(target=write, daemon=True).start()
steps()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to track the memory of others")
def test_what_there_is_and_what_is_written() -> None:
    with program(WRITER) as child:
        there, written = probed(child.pid, 0.2)
        assert there >= 3000 * PAGE
        assert 50 * PAGE <= written < there / 3
        again, _ = probed(child.pid, 0.01)
        assert again >= 3000 * PAGE, "the first probe has left nothing behind that hides pages from the next"
