"""`make setup` names what will not do and the way out.

Nothing here comes as far as the Python environment: these tests run in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: setup installs packages"),
]


def setup(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPO / "scripts/setup"], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("says", "words"),
    [("Version: 3.17.1", "is older than 4.2"), ("Version: 4.2.1", "the kernel lacks what it needs")],
    ids=["too old", "does not work here"],
)
def test_a_criu_that_will_not_do_is_refused_in_one_line(tmp_path: Path, says: str, words: str) -> None:
    criu = tmp_path / "criu"
    criu.write_text(f'#!/bin/sh\n[ "$1" = check ] && {{ echo "{words}"; exit 0; }}\necho "{says}"\n')
    criu.chmod(0o755)
    done = setup(WHIMBREL_CRIU=str(criu))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup: ")
    assert words in line
    assert "WHIMBREL_CRIU" in line, "the way out"
