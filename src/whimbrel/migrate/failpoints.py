"""Places where the tests can stop a migration, to kill something at exactly that moment.

Off unless $WHIMBREL_FAILPOINTS names a directory. There, a file named like a point holds whoever comes to that
point: the process writes ``POINT.reached`` and goes on when the file is removed, or after half a minute.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_VARIABLE = "WHIMBREL_FAILPOINTS"
_DIRECTORY = os.environ.get(_VARIABLE, "")
LONGEST_S = 30.0


@contextlib.contextmanager
def inherited(directory: Path) -> Iterator[None]:
    """Processes started meanwhile heed the points of that directory, whatever other labs of this process heed."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(directory)
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before


def armed(point: str) -> bool:
    return bool(_DIRECTORY) and (Path(_DIRECTORY) / point).exists()


def wait_at(point: str) -> None:
    """Blocking. Costs one comparison when failpoints are off."""
    if not armed(point):
        return
    directory = Path(_DIRECTORY)
    (directory / f"{point}.reached").touch()
    deadline = time.monotonic() + LONGEST_S
    while (directory / point).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
