"""How staged image files come to the destination: by rsync, or by lying on a file system that both nodes mount."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from whimbrel.model.errors import StepFailed

USER = "whimbrel"
MODULE = "stage"
LAYERS = "layers"
_SENT = re.compile(r"^Total bytes sent: ([0-9,]+)", re.MULTILINE)
_KIB = 1024


class Ship(Protocol):
    def folders(self, root: Path, names: Sequence[str]) -> int:
        """Bring folders below `root` over, whole; returns the bytes that left this node."""
        ...


@dataclass(frozen=True)
class Rsync:
    """rsync's own protocol to a daemon that the destination's worker runs for this migration alone.

    `bandwidth_bps` 0 means: as fast as it goes.
    """

    host: str
    port: int
    token: str
    bandwidth_bps: float = 0.0

    def folders(self, root: Path, names: Sequence[str]) -> int:
        limit = [f"--bwlimit={max(1, round(self.bandwidth_bps / 8 / _KIB))}"] if self.bandwidth_bps else []
        target = f"rsync://{USER}@{self.host}:{self.port}/{MODULE}/"
        try:
            done = subprocess.run(
                ["rsync", "--recursive", "--links", "--perms", "--relative", "--whole-file", "--stats", *limit,
                 *names, target],
                cwd=root, env={**os.environ, "RSYNC_PASSWORD": self.token, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
            )  # fmt: skip
        except OSError as error:
            raise StepFailed(f"rsync cannot be run: {error.strerror}; run scripts/setup") from error
        if done.returncode != 0:
            cause = done.stderr.strip().splitlines()
            raise StepFailed(f"rsync to the destination failed: {cause[0] if cause else done.returncode}")
        sent = _SENT.search(done.stdout)
        return int(sent[1].replace(",", "")) if sent else 0
