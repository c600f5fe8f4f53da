"""Staging on storage that both nodes mount: one folder per migration, seen by both."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from whimbrel.model.errors import Refused, StepFailed

FOLDER = "whimbrel/migrations"
MARK = "migration"
OWNER = "source"
SEEN_WITHIN_S = 5.0
LOOK_EVERY_S = 0.005


def stage_below(shared_directory: str, migration: str, *, node: str) -> Path:
    """The migration's folder as this node sees it. Raises Refused when the node mounts no shared storage."""
    if not shared_directory:
        raise Refused(
            f"{node} mounts no shared storage (`shared_directory` in its agent's settings): use another strategy"
        )
    return Path(shared_directory) / FOLDER / migration


def open_stage(stage: Path, migration: str, node: str) -> None:
    """At the source, before the destination looks. Raises StepFailed when the storage cannot be written."""
    try:
        stage.mkdir(parents=True)
        (stage / OWNER).write_text(node)
        (stage / MARK).write_text(migration)
    except OSError as error:
        raise StepFailed(f"the shared storage at {stage} cannot be written: {error.strerror}") from error


def find_stage(stage: Path, migration: str, *, node: str) -> None:
    """At the destination: it must see what the source wrote. Raises Refused when it does not."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            if (stage / MARK).read_text() == migration:
                return
        if time.monotonic() > deadline:
            raise Refused(
                f"{node} does not see what the source writes to the shared storage: mount the same one there, or use "
                "another strategy"
            )
        time.sleep(LOOK_EVERY_S)


def close_stage(stage: Path) -> None:
    """Remove it, whoever comes first."""
    shutil.rmtree(stage, ignore_errors=True)


def close_stages_of(shared_directory: str, node: str, *, but: Callable[[str], bool]) -> None:
    """Remove the stages that this node opened as a source; not those of the migrations of which `but` says so."""
    for stage in (Path(shared_directory) / FOLDER).glob("*"):
        with contextlib.suppress(OSError):
            if not but(stage.name) and (stage / OWNER).read_text() == node:
                close_stage(stage)


class Publish:
    """The `Ship` of shared storage: there is nothing to do. Who opens a file after another has closed it sees all of
    it: NFS, FUSE and SMB write back what they have when a file is closed. To sync each of CRIU's images besides was
    0.15 s of a freeze."""

    def folders(self, root: Path, names: Sequence[str]) -> int:
        return 0

    def interrupt(self) -> None:
        """A file system that hangs lets nobody go."""
