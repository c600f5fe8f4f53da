"""The lab's storage over NFS, where the kernel has it: its server in the storage node's own network namespace.

Version 3 without lock manager: a file lock must be the node's own, because the destination takes it while the frozen
source still holds it; version 4 keeps all locks at the server. What one edge has written and closed, the next look of
another sees: names and attributes are asked for each time, as with sshfs.

The kernel's own threads serve, and they keep the namespace alive until they are told to end (`stop`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from whimbrel.lab.processes import Process
from whimbrel.network import netns

PROGRAMS = ("rpcbind", "rpc.nfsd", "rpc.mountd", "exportfs", "mount.nfs")
FILE_SYSTEMS = ("nfsd", "nfs")
PORT, MOUNTD_PORT = 2049, 20048
PORTS = f"port={PORT},mountport={MOUNTD_PORT}"
OPTIONS = f"vers=3,nolock,proto=tcp,mountproto=tcp,{PORTS},hard,lookupcache=none,actimeo=0,retry=1"
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

# In a mount namespace of its own, so that nothing of the host's NFS server, if it has one, is read or changed.
_SERVER = """
set -e
folder=$1; shift
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/rpcbind
mount -t tmpfs -o mode=755 tmpfs /var/lib/nfs
mkdir /var/lib/nfs/sm /var/lib/nfs/rpc_pipefs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t nfsd nfsd /proc/fs/nfsd
rpcbind -w
for host; do exportfs -o rw,async,insecure,no_root_squash,no_subtree_check,fsid=1 "$host:$folder"; done
rpc.nfsd --no-nfs-version 4 4
exec rpc.mountd --foreground --no-nfs-version 4 --port """
_STOP = "mount -t nfsd nfsd /proc/fs/nfsd && echo 0 > /proc/fs/nfsd/threads"


def lacking() -> str:
    """What this machine has not that NFS needs; "" when it has all."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    missing += [f"the kernel's {name}" for name in FILE_SYSTEMS if not _kernel_has(name)]
    return " and ".join(missing)


def _kernel_has(name: str) -> bool:
    """Now, or as a module that can be loaded."""
    if name in Path("/proc/filesystems").read_text().split():
        return True
    modprobe = shutil.which("modprobe", path=SBIN)
    return modprobe is not None and subprocess.run([modprobe, "--quiet", name], check=False).returncode == 0


def server(name: str, namespace: Path, data: Path, edges: Iterable[str]) -> Process:
    """Serves `data` to the edges' addresses."""
    script = ("unshare", "--mount", "--propagation", "private", "env", f"PATH={_path()}", "sh", "-c")
    return Process(name, (*script, f"{_SERVER}{MOUNTD_PORT}", "sh", str(data), *edges), namespace, data.parent)


def mount_command(host: str, data: Path, target: Path) -> tuple[str, ...]:
    """Run in an edge's network namespace; ends when it is mounted."""
    return ("mount", "-t", "nfs", "-o", OPTIONS, f"{host}:{data}", str(target))


def detach(targets: Iterable[Path]) -> None:
    """While the server is still there: what waits for it ends, and the mounts go."""
    for target in targets:
        _quietly("umount", "--force", "--lazy", "--no-canonicalize", "--internal-only", str(target))


def stop(namespace: Path) -> None:
    """End the kernel's threads, which would hold the namespace for ever. Safe to repeat."""
    if namespace.exists():
        netns.call(namespace, lambda: _quietly("unshare", "--mount", "--propagation", "private", "sh", "-c", _STOP))


def _quietly(*argv: str) -> None:
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
