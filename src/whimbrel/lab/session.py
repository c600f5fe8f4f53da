"""A lab for the length of a block: the demo and the benchmarks live in one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from whimbrel.bench.companion import ENDING, interruptible
from whimbrel.lab.commands import LabStatus, Report, lab_down, lab_status, lab_up
from whimbrel.lab.config import DEFAULT_LAB_DIR


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that ask to end are ignored: a cleanup that is cut short would leave things behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lab_session(
    progress: Report,
    *,
    reuse: bool = False,
    topology: Path | None = None,
    lab_dir: Path = DEFAULT_LAB_DIR,
) -> Iterator[LabStatus]:
    """Bring a lab up and take it down at the end of the block, however that ends.

    With `reuse`, a lab that is up already is used, and left up. Raises what `lab_up` raises.
    """
    status = lab_status(lab_dir=lab_dir)
    if reuse and status.up:
        with interruptible():
            yield status
        return
    with interruptible():
        status = lab_up(topology, progress, lab_dir=lab_dir)
        try:
            yield status
        finally:
            with undisturbed():
                lab_down(lab_dir=lab_dir)
