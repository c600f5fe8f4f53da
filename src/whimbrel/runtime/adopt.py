"""Make a tree that CRIU restored a full citizen of runc.

At the destination `runc create` makes a *placeholder*: the record, the control groups and a first process that
only waits. After the restore the placeholder's process is ended and runc's record is pointed at the restored
one, so that `runc list`, `state`, `exec`, `kill` and `delete` work on it. Nothing of runc runs meanwhile, so
this costs a file of 20 kB in place of a program start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import Any

import msgspec

from whimbrel.model.errors import WhimbrelError
from whimbrel.runtime.runc import process_start_ticks

_NAMESPACE_FILES = {
    "NEWCGROUP": "cgroup",
    "NEWIPC": "ipc",
    "NEWNET": "net",
    "NEWNS": "mnt",
    "NEWPID": "pid",
    "NEWTIME": "time",
    "NEWUSER": "user",
    "NEWUTS": "uts",
}


def adopt(runc_root: Path, name: str, restored_pid: int, *, rootfs: Path | None = None) -> None:
    """Point runc's record of placeholder `name` at `restored_pid` (host process id). Blocking, 1-3 ms.

    `rootfs` replaces the placeholder's root file system in the record when it waited on another one.
    Raises WhimbrelError when there is no placeholder, or the restored process is gone.
    """
    folder = runc_root / name
    record_file = folder / "state.json"
    try:
        record: dict[str, Any] = msgspec.json.decode(record_file.read_bytes())
    except FileNotFoundError as error:
        raise WhimbrelError(f"runc has no placeholder for {name} in {runc_root}") from error
    start_ticks = process_start_ticks(restored_pid)
    if start_ticks is None:
        raise WhimbrelError(f"the restored process {restored_pid} of {name} is gone")
    placeholder = int(record["init_process_pid"])
    if placeholder != restored_pid:
        _end(placeholder, int(record["init_process_start"]))
    record["init_process_pid"] = restored_pid
    record["init_process_start"] = start_ticks
    record["namespace_paths"] = {
        kind: f"/proc/{restored_pid}/ns/{_NAMESPACE_FILES[kind]}" for kind in record["namespace_paths"]
    }
    if rootfs is not None:
        record["config"]["rootfs"] = str(rootfs)
    replacement = record_file.with_suffix(".adopted")
    replacement.write_bytes(msgspec.json.encode(record))
    replacement.chmod(0o600)
    replacement.replace(record_file)
    # its presence is how runc tells "created" from "running"
    (folder / "exec.fifo").unlink(missing_ok=True)


def _end(pid: int, start_ticks: int) -> None:
    """SIGKILL the placeholder and wait until it is dead, unless the id belongs to somebody else by now."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if process_start_ticks(pid) != start_ticks:
                return
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], 1.0)
        finally:
            os.close(descriptor)
