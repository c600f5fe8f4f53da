"""Programs that the builder calls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from whimbrel.model.errors import Refused

# A program may look at its processor, or write to /dev/null, before it does anything: the tree has these file systems
# for as long as the program runs, in a mount namespace of its own.
_INSIDE = """
for name in proc sys dev; do mount --rbind "/$name" "$1/$name" || exit 1; done
exec chroot "$@"
"""


def run(*argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run one program to its end and return what it printed. `env` replaces this process's settings.

    Raises Refused with its last line.
    """
    sbin = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    settings = {"PATH": sbin, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    whole = {**(os.environ if env is None else env), **settings}
    try:
        result = subprocess.run(argv, env=whole, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise Refused(f"cannot run {argv[0]}: {error.strerror}; run scripts/setup") from error
    if result.returncode != 0:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        cause = lines[-1].strip() if lines else f"status {result.returncode}"
        raise Refused(f"building an image: {' '.join(argv[:3])} failed: {cause}")
    return result.stdout


def run_inside(root: Path, *argv: str, env: Mapping[str, str] | None = None) -> str:
    """Run a program of a tree, with the tree as its root folder. Raises Refused with its last line."""
    settings = {} if env is None else env
    script = ("sh", "-c", _INSIDE, "sh", str(root), *argv)
    try:
        return run("unshare", "--mount", "--propagation", "private", *script, env=settings)
    except Refused as error:
        cause = str(error).partition(" failed: ")[2]
        raise Refused(f"building an image: {' '.join(argv[:2])} failed in it: {cause}") from error
