"""What finished experiments left in a folder (`whimbrel experiment run --out`): found by their files, and read,
never written. Nothing outside of the folder is told, whatever links are in it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from whimbrel.controller.problems import Unknown
from whimbrel.model.errors import BadInput

PICTURES = {".png": "image/png", ".svg": "image/svg+xml", ".webp": "image/webp"}
FILES = {".json": "application/json", ".md": "text/markdown; charset=utf-8", ".txt": "text/plain; charset=utf-8",
         ".csv": "text/csv; charset=utf-8"}  # fmt: skip
KINDS = PICTURES | FILES
DEEPEST = 3
MOST_FILES = 5000
MOST_BYTES = 64 << 20


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """A folder with a figure in it. `figure`: the first picture, "" for none; paths are those of
    ``/v1/experiments/files/``; `unix_s`: when something in it was written last."""

    name: str
    figure: str
    unix_s: float
    pictures: tuple[str, ...]
    files: tuple[str, ...]


class Experiments:
    """Blocking; safe to call from any thread."""

    def __init__(self, directory: Path | None) -> None:
        self._root = directory

    def all(self) -> list[Experiment]:
        """The newest first. Raises BadInput when the folder cannot be read."""
        if self._root is None or not self._root.exists():
            return []
        found: dict[Path, list[os.stat_result]] = {}
        names: dict[Path, list[str]] = {}
        seen = 0
        root = self._root.resolve()
        for folder, folders, files in os.walk(root):
            here = Path(folder)
            depth = len(here.relative_to(root).parts)
            folders[:] = sorted(one for one in folders if not one.startswith(".")) if depth < DEEPEST else []
            for file in sorted(files):
                if Path(file).suffix.lower() in KINDS and not file.startswith("."):
                    seen += 1
                    if seen > MOST_FILES:
                        raise BadInput(f"{root} holds more than {MOST_FILES} results: move old ones away")
                    path = here / file
                    if path.is_symlink():
                        continue
                    with contextlib.suppress(FileNotFoundError):  # an experiment cleans up behind itself
                        stat = path.stat()
                        found.setdefault(here, []).append(stat)
                        names.setdefault(here, []).append(path.relative_to(root).as_posix())
        listed = [self._experiment(root, folder, names[folder], stats) for folder, stats in found.items()]
        return sorted(listed, key=lambda one: (-one.unix_s, one.name))

    def _experiment(self, root: Path, folder: Path, paths: list[str], stats: list[os.stat_result]) -> Experiment:
        pictures = tuple(path for path in paths if Path(path).suffix.lower() in PICTURES)
        return Experiment(
            name=folder.relative_to(root).as_posix() if folder != root else root.name,
            figure=pictures[0] if pictures else "",
            unix_s=max(one.st_mtime for one in stats),
            pictures=pictures,
            files=tuple(path for path in paths if path not in pictures),
        )

    def file(self, path: str) -> tuple[bytes, str]:
        """Its content and media type. Raises Unknown for what is not there, or not to be told."""
        unknown = Unknown(f"there is no result {path!r}: GET /v1/experiments lists them")
        media_type = KINDS.get(Path(path).suffix.lower())
        if self._root is None or media_type is None or "\0" in path:
            raise unknown
        root = self._root.resolve()
        try:
            wanted = (root / path).resolve()
            hidden = any(part.startswith(".") for part in wanted.relative_to(root).parts)
            if hidden or not wanted.is_file() or wanted.stat().st_size > MOST_BYTES:
                raise unknown
            return wanted.read_bytes(), media_type
        except (OSError, ValueError):
            raise unknown from None
