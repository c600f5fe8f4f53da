"""Make a tree that CRIU restored a full citizen of runc.

At the destination `runc create` makes a *placeholder*: the record, the control groups and a first process
that only waits. After the restore the placeholder's process is ended and runc's record is pointed at the
restored one, so that `runc list`, `state`, `exec`, `kill` and `delete` work on it. Nothing of runc runs
meanwhile, so this costs a file of 20 kB in place of a program start.
"""

from __future__ import annotations

import contextlib
import os
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


def is_placeholder(runc_root: Path, name: str) -> bool:
    """Whether the container still waits to be started or adopted."""
    return (runc_root / name / "exec.fifo").exists()


def point_to_rootfs(runc_root: Path, name: str, rootfs: Path) -> None:
    """Let the record of a placeholder, which waits on another root file system, name the real one."""
    record = _read(runc_root, name)
    record["config"]["rootfs"] = str(rootfs)
    _write(runc_root, name, record)


def adopt(runc_root: Path, name: str, restored_pid: int) -> None:
    """Point runc's record of placeholder `name` at `restored_pid` (host process id). Blocking, about 1 ms.

    Raises WhimbrelError when there is no placeholder, or the restored process is gone.
    """
    record = _read(runc_root, name)
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
    _write(runc_root, name, record)
    # its presence is how runc tells "created" from "running"
    (runc_root / name / "exec.fifo").unlink(missing_ok=True)


def find_restored(runc_root: Path, name: str, cgroup_pids: list[int]) -> int:
    """Host id of the container's first process, adopted or not yet. Raises WhimbrelError without one."""
    record = _read(runc_root, name)
    recorded = int(record["init_process_pid"])
    if not is_placeholder(runc_root, name):
        return recorded
    for pid in cgroup_pids:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            inside = status.partition("NSpid:")[2].partition("\n")[0].split()
            if pid != recorded and len(inside) > 1 and inside[-1] == "1":
                return pid
    raise WhimbrelError(f"no restored process of {name} runs")


def _read(runc_root: Path, name: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = msgspec.json.decode((runc_root / name / "state.json").read_bytes())
    except FileNotFoundError as error:
        raise WhimbrelError(f"runc has no placeholder for {name} in {runc_root}") from error
    return record


def _write(runc_root: Path, name: str, record: dict[str, Any]) -> None:
    replacement = runc_root / name / "state.json.new"
    replacement.write_bytes(msgspec.json.encode(record))
    replacement.chmod(0o600)
    replacement.replace(runc_root / name / "state.json")


def _end(pid: int, start_ticks: int) -> None:
    """SIGKILL the placeholder, unless the id belongs to somebody else by now.

    Its death is not waited for: taking its namespaces down can last 20 ms.
    """
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if process_start_ticks(pid) == start_ticks:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
