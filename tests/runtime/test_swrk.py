"""A worker that ends without an answer is noticed, whoever still has its end of the connection."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from whimbrel.checkpoint.swrk import CriuWorker, Process
from whimbrel.model.errors import StepFailed

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")]


def _dies_and_leaves_a_child(_: Sequence[str], *, fds: Sequence[int], stderr: int) -> Process:
    """As CRIU does that is killed when it has made the first process of a tree."""
    argv = ["sh", "-c", "sleep 30 & read line < /dev/null; exit 3"]
    return subprocess.Popen(argv, pass_fds=fds, stderr=stderr, stdout=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.timeout(20)
def test_a_worker_that_dies_while_its_child_lives_is_noticed(tmp_path: Path) -> None:
    worker = CriuWorker(netns=Path("/proc/self/ns/net"), run_dir=tmp_path, launch=_dies_and_leaves_a_child)
    try:
        with pytest.raises(StepFailed, match="CRIU went away: 3"):
            worker.warm_up()
    finally:
        worker.kill()
