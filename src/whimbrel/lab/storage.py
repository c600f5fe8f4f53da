"""The lab's storage node and the edges' mounts of it: one file system that all of them see, over the lab's links.

NFS where the kernel has it (`nfs`), as in paper `fast`, III-C; else, chosen by measurement (docs/shared-storage.md),
sshfs on a bare `sftp-server`.
All nodes of a lab share the host's mount namespace, so every edge mounts at a place of its own in its state directory.
Nothing is cached on the way but pages of open files: what one edge has written and closed, the next look of another
sees.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from whimbrel.lab import nfs, sftp_server
from whimbrel.lab.config import shared_directory
from whimbrel.lab.processes import Process, read_pid, start, stop_at_once
from whimbrel.lab.record import recorded
from whimbrel.lab.topology import Edge, Topology, node_address
from whimbrel.model.errors import Refused, StepFailed
from whimbrel.network import netns
from whimbrel.storage.mounts import mount_at

NFS, SSHFS = KINDS = ("nfs", "sshfs")  # which of them where both can be had: the first
PORT = 2222
FUSE = Path("/dev/fuse")
PROCESS = "storage"  # also the name of its pid file and log
MOUNT_TIMEOUT_S = 60.0
POLL_S = 0.005
# Names, attributes and folders are asked for at every look. `default_permissions` lets the kernel check them,
# `allow_other` lets the services in, whose users are not root.
SSHFS_OPTIONS = (
    "dir_cache=no,attr_timeout=0,entry_timeout=0,negative_timeout=0,allow_other,default_permissions,noauto_cache"
)


def exported(topology: Topology, lab_dir: Path) -> Path:
    """The folder on the storage node whose contents all edges see."""
    assert topology.storage is not None
    return lab_dir / topology.storage.name / "data"


def within_reach(topology: Topology, progress: Callable[[str], None]) -> Topology:
    """The topology with the kind of storage that this machine can give, NFS before sshfs; without storage where that is
    wanted only if it can be had. Raises Refused where it is required and cannot."""
    if topology.storage is None:
        return topology
    wanted = topology.storage.kind
    lacking = {kind: _LACKING[kind]() for kind in (KINDS if wanted == "auto" else (wanted,))}
    found = next((kind for kind, what in lacking.items() if not what), None)
    if found is not None:
        return msgspec.structs.replace(topology, storage=msgspec.structs.replace(topology.storage, kind=found))
    needs = lacking.get(SSHFS) or lacking[NFS]  # of the two the one that setup can bring
    if topology.storage.required:
        raise Refused(f"the lab's storage needs {needs}: run scripts/setup, or leave [storage] out")
    progress(f"no storage that all edges mount: it needs {needs} (scripts/setup)")
    return msgspec.structs.replace(topology, storage=None)


def _sshfs_lacking() -> str:
    needed = {
        "sshfs": shutil.which("sshfs"),
        "sftp-server": sftp_server.program(),
        str(FUSE): FUSE.exists(),
    }
    return " and ".join(name for name, there in needed.items() if not there)


_LACKING: dict[str, Callable[[], str]] = {NFS: nfs.lacking, SSHFS: _sshfs_lacking}


def start_storage(topology: Topology, lab_dir: Path) -> None:
    """Start the server and the edges' mounts; `wait_until_mounted` must follow."""
    if topology.storage is None:
        return
    data = exported(topology, lab_dir)
    data.mkdir(parents=True)
    data.parent.chmod(0o700)
    host = str(node_address(topology.storage.subnet))
    start_server = _start_nfs if topology.storage.kind == NFS else _start_sftp
    start_server(topology, data, host)
    options = "" if topology.storage.kind == NFS else sshfs_options(PORT)
    for edge in topology.storage_edges:
        target = shared_directory(lab_dir, edge.name)
        target.mkdir(parents=True, mode=0o700)
        argv: tuple[str, ...] = ("sshfs", "-f", f"{host}:{sftp_server.EXPORT}", str(target), "-o", options)
        if topology.storage.kind == NFS:
            argv = nfs.mount_command(host, data, target)
        start(_client(topology, lab_dir, edge, argv))


def _start_sftp(topology: Topology, data: Path, host: str) -> None:
    assert topology.storage is not None
    where = topology.namespace_path(topology.storage.name)
    # Made here and handed on: whoever connects may do so before the server has come up.
    with netns.call(where, lambda: socket.create_server((host, PORT))) as listener:
        # As a plain file: it imports none of ours, and is up in a moment.
        command = (sys.executable, "-I", "-S", sftp_server.__file__)
        argv = (*command, str(listener.fileno()), str(data), *_allowed(topology))
        start(Process(PROCESS, argv, where, data.parent), pass_fds=[listener.fileno()])


def _start_nfs(topology: Topology, data: Path, host: str) -> None:
    assert topology.storage is not None
    start(nfs.server(PROCESS, topology.namespace_path(topology.storage.name), data, _allowed(topology)))


def _allowed(topology: Topology) -> list[str]:
    return [str(node_address(edge.subnet)) for edge in topology.storage_edges]


def sshfs_options(port: int) -> str:
    """The options of a mount whose server is at TCP `port`."""
    options = f"directport={port},{SSHFS_OPTIONS}"
    told = subprocess.run(["sshfs", "--help"], capture_output=True, text=True, check=False)
    # Newer ones refuse absolute links otherwise, older ones do not know the option.
    return f"{options},no_contain_symlinks" if "no_contain_symlinks" in told.stdout + told.stderr else options


def _client(topology: Topology, lab_dir: Path, edge: Edge, argv: tuple[str, ...]) -> Process:
    return Process(PROCESS, argv, topology.namespace_path(edge.name), lab_dir / edge.name)


def wait_until_mounted(topology: Topology, lab_dir: Path) -> None:
    """Raises StepFailed with the last line that a mount's process wrote, when one ended or is too slow."""
    deadline = time.monotonic() + MOUNT_TIMEOUT_S
    for edge in topology.storage_edges:
        process = _client(topology, lab_dir, edge, ())
        target = shared_directory(lab_dir, edge.name).resolve()
        while mount_at(target) is None:
            ended = not read_pid(process.pid_file)
            if (ended and mount_at(target) is None) or time.monotonic() > deadline:  # mount(8) ends when it has done it
                lines = process.log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
                raise StepFailed(f"{edge.name} cannot mount the lab's storage: {lines[-1].strip()}")
            time.sleep(POLL_S)


def stop_mounts(lab_dir: Path) -> Iterable[Path]:
    """End the mounts' processes and the server, however they are: whoever waits for a file there then gets an error.

    Returns the pid files of those that ran."""
    plan = recorded(lab_dir)
    storage = plan.storage if plan is not None and plan.storage is not None and plan.storage.kind == NFS else None
    if storage is not None:
        nfs.detach(lab_dir.resolve().glob("*/shared"))
    files = sorted(lab_dir.glob(f"*/{PROCESS}.pid"))
    running = [file for file in files if read_pid(file)]
    stop_at_once(files)
    if plan is not None and storage is not None:
        nfs.stop(plan.namespace_path(storage.name))
    return running
