"""`make setup` names what will not do and the way out.

Nothing here comes as far as the Python environment: these tests run in it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from provision import compiled
from provision.shell import SetupError, Step

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


def test_a_compiled_part_is_made_anew_when_its_source_has_changed_and_a_mistake_is_shown(tmp_path: Path) -> None:
    sources = [tmp_path / name for name in compiled.SOURCES]
    for name, source in zip(compiled.SOURCES, sources, strict=True):
        source.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, source)
    source = sources[0]
    with Step("compiled") as step:
        compiled.ensure(step, tmp_path)
    assert step.outcome == "compiled place.c compare.c"
    first = compiled.library_of(source).stat().st_ino
    os.utime(source)
    with Step("compiled") as step:
        compiled.ensure(step, tmp_path)
    assert compiled.library_of(source).stat().st_ino == first
    source.write_text(source.read_text() + "mistake\n")
    with pytest.raises(SetupError, match=r"mistake[\s\S]*install a C compiler"), Step("compiled") as step:
        compiled.ensure(step, tmp_path)
    assert sorted(file.name for file in source.parent.iterdir() if file.suffix == ".so") == ["compare.so", "place.so"]
    assert ctypes.CDLL(str(compiled.library_of(source))).sizes(0) > 0, "what was there stays"


def test_a_package_carries_the_compiled_parts_and_says_for_which_machine_it_is(tmp_path: Path) -> None:
    for name in ("src", "scripts", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        here = REPO / name
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(here, tmp_path / name, ignore=ignored) if here.is_dir() else shutil.copy(here, tmp_path / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    assert f"py3-none-linux_{platform.machine()}" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        for name in ("place", "compare"):
            library = archive.extract(f"whimbrel/memory/{name}.so", tmp_path)
            assert ctypes.c_char.in_dll(ctypes.CDLL(library), "SOURCE")
            assert f"whimbrel/memory/{name}.c" in archive.namelist()
