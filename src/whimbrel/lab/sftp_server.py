"""The file server of a lab's storage node: SFTP over plain TCP, one `sftp-server` for each edge that mounts it.

No ssh and no keys: the links are the lab's own, so what guards it is who may connect (the addresses of the edges)
and what it can reach (a root of its own that holds the exported folder and, read-only, the programs to run). Nothing
of the host's configuration is read or changed, and the mounts below are in a mount namespace of this process.

Run as ``python sftp_server.py LISTENING_FD FOLDER ADDRESS…``; imports nothing but the standard library, so that it is
up quickly.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

EXPORT = "/data"
PROGRAMS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 0x1000, 0x4000, 0x40000
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64")  # links into /usr on a merged system
_libc = ctypes.CDLL(None, use_errno=True)


def program() -> str | None:
    """Where the distribution keeps its `sftp-server`, which no PATH leads to."""
    return next((path for path in PROGRAMS if os.access(path, os.X_OK)), None)


def main(listening_fd: int, folder: Path, allowed: set[str]) -> None:
    server = program()
    if server is None:
        sys.exit("there is no sftp-server: install the package openssh-sftp-server")
    listener = socket.socket(fileno=listening_fd)
    os.umask(0)  # the client's kernel has applied the umask of whoever writes there
    _confine(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        connection, (address, *_) = listener.accept()
        with connection:
            if address not in allowed:
                print(f"refused {address}: it is no edge that mounts this", flush=True)
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = connection.fileno()
            subprocess.Popen([server, "-e", "-l", "ERROR"], stdin=wire, stdout=wire)


def _confine(folder: Path) -> None:
    """From here on this process and its children see nothing but `folder`, as /data, and the system's programs."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    root = folder.parent / "root"
    root.mkdir(exist_ok=True)
    _mount("whimbrel", root, "tmpfs", 0)
    for path in map(Path, _SYSTEM):
        inside = root / path.relative_to("/")
        if path.is_symlink():
            inside.symlink_to(os.readlink(path))
        elif path.is_dir():
            inside.mkdir()
            _mount(path, inside, None, _MS_BIND)
            _mount("none", inside, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/false\n")  # sftp-server asks who it is
    (root / "dev").mkdir()
    os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / EXPORT.lstrip("/")).mkdir()
    _mount(folder, root / EXPORT.lstrip("/"), None, _MS_BIND)
    os.chroot(root)
    os.chdir("/")


def _mount(source: str | Path, target: str | Path, kind: str | None, flags: int) -> None:
    done = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode() if kind else None, flags, None)
    _check(done, f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), set(sys.argv[3:]))
