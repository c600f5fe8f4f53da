"""A PostgreSQL server of the tests' own: in a folder of its own, on a UNIX socket, as a user without rights."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

USER = "nobody"  # the server refuses to run as root


def programs() -> Path | None:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return Path(found[-1]).parent if found else None


def missing() -> str:
    """Why there is none here, "" when there can be one."""
    return "" if programs() else "PostgreSQL missing: run scripts/setup --engines"


class Server:
    def __init__(self, folder: Path) -> None:
        self._folder, self._programs = folder, programs()
        data = ["-D", str(folder / "data")]
        self._run("initdb", "-U", "whimbrel", "--auth=trust", "--no-sync", "-E", "UTF8", "--no-locale", *data)
        self.start()

    def start(self) -> None:
        listen = f"-k {self._folder} -c listen_addresses= -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self._folder / "data"), "-w", "-l", str(self._folder / "log"), "-o", listen, "start"
        )

    def stop(self, *, at_once: bool = False) -> None:
        mode = "immediate" if at_once else "fast"
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-m", mode, "stop")

    def database(self, name: str) -> sa.URL:
        """A new, empty one."""
        self._run("createdb", "-h", str(self._folder), "-U", "whimbrel", name)
        return self.url(name)

    def url(self, name: str) -> sa.URL:
        where = {"host": str(self._folder)}
        return sa.URL.create("postgresql+psycopg", username="whimbrel", database=name, query=where)

    def _run(self, program: str, *arguments: str) -> None:
        account = pwd.getpwnam(USER)
        argv = [f"{self._programs}/{program}", *arguments]
        if os.geteuid() == 0:
            argv = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", *argv]
        # not piped: the server keeps what it gets
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            check=False, timeout=120, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, f"{program} ends with {done.returncode}: {self._log()}"

    def _log(self) -> str:
        log = self._folder / "log"
        return log.read_text()[-2000:] if log.exists() else ""


@contextmanager
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a short path: there is a socket in it
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        made = Server(folder)
        try:
            yield made
        finally:
            if (folder / "data/postmaster.pid").exists():
                made.stop(at_once=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
