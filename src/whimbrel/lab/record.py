"""What says that a directory, and the namespaces it names, are a lab's.

Written before anything is made, removed after everything is. Whatever has no record here is somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from whimbrel.lab.topology import Topology
from whimbrel.model.errors import Conflict, WhimbrelError

MARKER = ".whimbrel-lab"
STATE_FILE = "lab.json"


def is_marked(lab_dir: Path) -> bool:
    return (lab_dir / MARKER).exists()


def claim(lab_dir: Path, plan: Topology) -> None:
    """Make the directory the lab's, and note what will be made. Refuses one that holds other files."""
    lab_dir.mkdir(parents=True, exist_ok=True)
    if not is_marked(lab_dir) and any(lab_dir.iterdir()):
        raise WhimbrelError(f"{lab_dir} holds other files: name an empty directory for the lab, or clear it")
    (lab_dir / MARKER).touch()
    fresh = lab_dir / f"{STATE_FILE}.new"
    fresh.write_bytes(msgspec.json.encode(plan))
    os.replace(fresh, lab_dir / STATE_FILE)


def recorded(lab_dir: Path) -> Topology | None:
    """The topology of the lab that is or was up; None when there is none."""
    if not is_marked(lab_dir):
        return None
    try:
        return msgspec.json.decode((lab_dir / STATE_FILE).read_bytes(), type=Topology)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise WhimbrelError(f"{lab_dir / STATE_FILE} is damaged ({error}): restore it, or tidy up by hand") from error


@contextlib.contextmanager
def prefix_reserved(plan: Topology) -> Iterator[None]:
    """Nobody else builds under this prefix inside the block, and nothing bears its names at the start.

    So whatever bears them afterwards is ours to remove. The lock is an abstract socket: no file stays.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(f"\0whimbrel-lab-{plan.prefix}")
        except OSError as error:
            raise Conflict("another `whimbrel lab up` is at work: wait until it has finished") from error
        taken = [path.name for path in map(plan.namespace_path, plan.namespaces) if path.exists()]
        if taken:
            raise Conflict(
                f"the network namespaces {', '.join(taken)} exist and are not this lab's: "
                "take down the lab they belong to, or choose another `prefix` in the topology"
            )
        yield
