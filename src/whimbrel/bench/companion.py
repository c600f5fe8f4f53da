"""Blocks that end in order when somebody asks the program to end, and programs that run beside one and not longer."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""With SIGINT, what asks a program to end."""
END_S = 10.0


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the block as Ctrl-C does, so that its cleanup runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Signals that ask to end are heard when the block is over: what is started in it is known before they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    for number in before:
        signal.signal(number, lambda came, _frame: heard.append(came))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for came in heard[:1]:
            signal.raise_signal(came)


@contextlib.contextmanager
def companion(
    argv: Sequence[str], *, stderr: int | IO[bytes] = subprocess.DEVNULL, end_s: float = END_S
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs beside the block and not longer: it is asked to end, and killed if it has not after `end_s`.

    It has a session of its own: Ctrl-C is for us.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with deferred():  # Popen waits for its child: interrupted there, it would forget that there is one
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
        yield process
    finally:
        if process is not None:
            with process:
                process.terminate()
                try:
                    process.wait(end_s)
                except subprocess.TimeoutExpired:
                    process.kill()
