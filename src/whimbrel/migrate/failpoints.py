"""Places where the tests can stop a migration, to kill something at exactly that moment.

Off unless $WHIMBREL_FAILPOINTS names a directory. There, a file named like a point holds whoever comes to that
point: the process writes ``POINT.reached`` and goes on when the file is removed, or after half a minute.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_DIRECTORY = os.environ.get("WHIMBREL_FAILPOINTS", "")
LONGEST_S = 30.0


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
