"""How staged image files come to the destination: by rsync, or by lying on a file system that both nodes mount."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from whimbrel.model.errors import StepFailed

USER = "whimbrel"
MODULE = "stage"
LAYERS = "layers"
_SENT = re.compile(r"^Total bytes sent: ([0-9,]+)", re.MULTILINE)
_KIB = 1024
CONNECT_S, SILENCE_S = 3, 5  # a link that dies without a word must not keep a container frozen


class Ship(Protocol):
    def folders(self, root: Path, names: Sequence[str]) -> int:
        """Bring folders below `root` over, whole; returns the bytes that left this node."""
        ...

    def interrupt(self) -> None:
        """From another thread: what is under way fails."""
        ...


class Rsync:
    """rsync's own protocol to a daemon that the destination's worker runs for this migration alone.

    `bandwidth_bps` 0 means: as fast as it goes.
    """

    def __init__(self, host: str, port: int, token: str, bandwidth_bps: float = 0.0) -> None:
        self._target = f"rsync://{USER}@{host}:{port}/{MODULE}/"
        self._token = token
        self._limit = [f"--bwlimit={max(1, round(bandwidth_bps / 8 / _KIB))}"] if bandwidth_bps else []
        self._gate = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        with self._gate:
            self._interrupted = True
            if self._running is not None:
                self._running.kill()

    def folders(self, root: Path, names: Sequence[str]) -> int:
        process = self._start(root, names)
        stdout, stderr = process.communicate()
        if process.returncode != 0:
            cause = stderr.strip().splitlines()
            raise StepFailed(f"rsync to the destination failed: {cause[0] if cause else process.returncode}")
        sent = _SENT.search(stdout)
        return int(sent[1].replace(",", "")) if sent else 0

    def _start(self, root: Path, names: Sequence[str]) -> subprocess.Popen[str]:
        with self._gate:
            if self._interrupted:
                raise StepFailed("rsync to the destination was called off")
            try:
                self._running = subprocess.Popen(
                    ["rsync", "--recursive", "--links", "--perms", "--relative", "--whole-file", "--stats",
                     f"--timeout={SILENCE_S}", f"--contimeout={CONNECT_S}", *self._limit, *names, self._target],
                    cwd=root, env={**os.environ, "RSYNC_PASSWORD": self._token, "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
            except OSError as error:
                raise StepFailed(f"rsync cannot be run: {error.strerror}; run scripts/setup") from error
            return self._running
