"""Running commands and telling the user what happens, one line per step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

# A root shell got with plain `su` often lacks the sbin folders, where most of our tools live.
SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
)
ERROR_TAIL_LINES = 3


class SetupError(Exception):
    """A step failed: what went wrong, and what the user can do about it."""

    def __init__(self, problem: str, way_out: str) -> None:
        super().__init__(f"{problem}; {way_out}")


class CommandError(Exception):
    """A command ended with a non-zero status; `tail` holds the last lines that it printed."""

    def __init__(self, argv: Sequence[str], status: int, output: str) -> None:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        of_apt = [line for line in lines if line.startswith("E: ")]
        self.tail = " | ".join((of_apt or lines)[-ERROR_TAIL_LINES:])
        super().__init__(f"`{Path(argv[0]).name} {' '.join(argv[1:3])} …` ended with {status}: {self.tail}")


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    """Run a command to its end and return its standard output."""
    merged = {**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        result = subprocess.run(argv, env=merged, input=stdin, text=True, capture_output=True, check=False)
    except OSError as error:
        raise CommandError(argv, 127, str(error)) from error
    if result.returncode != 0:
        raise CommandError(argv, result.returncode, result.stdout + result.stderr)
    return result.stdout


class Step:
    """Context manager that prints one line: the step's name, its outcome and how long it took."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outcome = "ready"
        self._started = time.monotonic()
        self._live = sys.stdout.isatty()

    def __enter__(self) -> Step:
        self.doing("checking")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = self.outcome if error is None else "FAILED"
        clear = "\r\033[K" if self._live else ""
        print(f"{clear}  {self.name:<9} {outcome} ({time.monotonic() - self._started:.1f} s)", flush=True)

    def doing(self, what: str) -> None:
        """Show what is going on, on a terminal only: logs keep to one line per step."""
        if self._live:
            print(f"\r\033[K  {self.name:<9} {what} …", end="", flush=True)
