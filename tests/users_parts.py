"""Planners and strategies as a user adds them."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, group: str, value: str, text: str) -> None:
    """A package of a user's, as pip would leave it: `of_a_user.py` with this `text`, `value` under an entry point."""
    (folder / "of_a_user.py").write_text(text)
    information = folder / "of_a_user-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-user\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[{group}]\nmine = {value}\n")
