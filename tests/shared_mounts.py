"""A shared file system for tests: a real sftp-server on loopback, mounted twice by sshfs, as two nodes would."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from whimbrel.lab import sftp_server
from whimbrel.lab.storage import sshfs_options
from whimbrel.storage.layer import unmount
from whimbrel.storage.mounts import mount_at

POSSIBLE = os.geteuid() == 0 and shutil.which("sshfs") is not None and Path("/dev/fuse").exists()


@dataclass
class Shared:
    """`one` and `two` are where the nodes mount it, `data` is the folder that the server exports."""

    one: Path
    two: Path
    data: Path
    clients: list[subprocess.Popen[bytes]]

    def hang(self, mount: Path) -> None:
        """From now on whoever touches the mount waits."""
        self._client(mount).send_signal(signal.SIGSTOP)

    def go_on(self, mount: Path) -> None:
        self._client(mount).send_signal(signal.SIGCONT)

    def _client(self, mount: Path) -> subprocess.Popen[bytes]:
        return self.clients[(self.one, self.two).index(mount)]


@contextmanager
def shared_file_system(base: Path) -> Iterator[Shared]:
    data = base / "server" / "data"
    data.mkdir(parents=True)
    mounts = (base / "one", base / "two")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        argv = [sys.executable, "-I", "-S", sftp_server.__file__, str(listener.fileno()), str(data), "127.0.0.1"]
        server = subprocess.Popen(argv, pass_fds=[listener.fileno()])
    clients = []
    try:
        for mount in mounts:
            mount.mkdir()
            argv = ["sshfs", "-f", f"127.0.0.1:{sftp_server.EXPORT}", str(mount), "-o", sshfs_options(port)]
            clients.append(subprocess.Popen(argv))
        deadline = time.monotonic() + 20
        while any(mount_at(mount) is None for mount in mounts):
            assert time.monotonic() < deadline, "sshfs does not mount"
            time.sleep(0.01)
        yield Shared(*mounts, data, clients)
    finally:
        for process in (*clients, server):
            process.kill()  # also one that was stopped
            process.wait()
        for mount in mounts:
            unmount(mount)


# A program that begins with this has its first argument as its root, in a mount namespace of its own, as a container.
INSIDE = """
import ctypes, os, sys
_libc = ctypes.CDLL(None, use_errno=True)
def _do(result):
    assert result == 0, os.strerror(ctypes.get_errno())
_do(_libc.unshare(0x20000))
_do(_libc.mount(b"none", b"/", None, 0x44000, None))
_do(_libc.mount(sys.argv[1].encode(), sys.argv[1].encode(), None, 0x1000, None))
os.chdir(sys.argv[1])
_do(_libc.syscall(155, b".", b"."))
_do(_libc.umount2(b".", 2))
"""
