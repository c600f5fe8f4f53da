"""What the destination has decided, in files of the migration's work folder there: written once, never taken back.

committed   the service is the destination's (written by the receiving process before the first instruction)
whole       all of its pages are in place: the receiving process is not needed any more (written by it)
lost        the receiving process ended in between; the service was ended there, for certain (written by the agent)

They outlive both processes, and stay until the source has heard them.
"""

from __future__ import annotations

from pathlib import Path

from whimbrel.wire.calls import Fate

COMMITTED, WHOLE, LOST = "committed", "whole", "lost"


def write_word(work_dir: Path, word: str, text: str = "") -> None:
    """Whole or not at all: a reader never sees half of one."""
    new = work_dir / f"{word}.new"
    new.write_text(text)
    new.rename(work_dir / word)


def said(work_dir: Path, word: str) -> bool:
    return (work_dir / word).exists()


def fate_of(work_dir: Path) -> Fate:
    """A folder that is gone, or without words, says that the service never ran."""
    if said(work_dir, LOST):
        return Fate.LOST
    return Fate.RUNS if said(work_dir, COMMITTED) else Fate.NEVER_RAN


def beside_words(work_dir: Path) -> list[Path]:
    return [entry for entry in work_dir.iterdir() if entry.name not in (COMMITTED, WHOLE, LOST)]
