"""The compiled parts of the project, made where their sources lie; see `hatch_build.py` for packages."""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from pathlib import Path

from provision.shell import CommandError, SetupError, Step, run

SOURCES = ("src/whimbrel/memory/place.c", "src/whimbrel/memory/compare.c")
FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-Wall", "-Wextra")


def library_of(source: Path) -> Path:
    return source.with_suffix(".so")


def _digest(source: Path) -> str:
    """The library says which source it is of: a date would not do where files are copied."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _is_of(library: Path, source: Path) -> bool:
    return library.exists() and _digest(source).encode() in library.read_bytes()


def build(source: Path) -> None:
    """Raises CommandError when it does not compile. What is loaded already stays as it is: the new one takes its
    name, not its place."""
    library = library_of(source)
    descriptor, unfinished = tempfile.mkstemp(dir=library.parent, prefix=f".{library.name}.")
    os.close(descriptor)
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        run([*compiler, *FLAGS, f'-DSOURCE_DIGEST="{_digest(source)}"', "-o", unfinished, str(source)])
        os.chmod(unfinished, 0o755)
        os.replace(unfinished, library)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def ensure(step: Step, repo: Path) -> None:
    """Compile what has changed since the last time."""
    sources = [repo / name for name in SOURCES]
    stale = [source for source in sources if not _is_of(library_of(source), source)]
    for source in stale:
        step.doing(f"compiling {source.name}")
        try:
            build(source)
        except CommandError as error:
            raise SetupError(str(error), "install a C compiler (`apt-get install gcc libc6-dev`)") from error
    step.outcome = f"compiled {' '.join(source.name for source in stale)}" if stale else "nothing has changed"
