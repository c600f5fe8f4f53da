"""The destination's side of staging: takes connections of rsync and of layers for CRIU's page server.

Both come to one port. rsync speaks first with ``@RSYNCD:``, and gets a daemon of its own on that connection (as under
inetd) which knows one module, one user and one password: the migration's token. A layer begins as a page channel
does, with the token and the layer's number, and then the connection is the page server's.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.staging.pageserver import serve
from whimbrel.migrate.staging.ship import LAYERS, MODULE, USER
from whimbrel.model.errors import ProtocolMismatch, WhimbrelError

SILENCE_S = 10.0


class StageHost:
    """Serves until `close`. `stage` is the folder that is filled; `complain` hears what went wrong."""

    def __init__(
        self, listen_host: str, stage: Path, token: str, *, run_dir: Path, complain: Callable[[str], None]
    ) -> None:
        self._stage = stage
        self._token = token
        self._run_dir = run_dir
        self._complain = complain
        self._children: list[subprocess.Popen[bytes]] = []
        self._config = stage.with_name("rsyncd.conf")
        (stage / LAYERS).mkdir(parents=True, exist_ok=True)
        self._write_config()
        self._listener = socket.create_server((listen_host, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="stage", daemon=True).start()

    def close(self) -> None:
        """No more connections; ends what still runs."""
        self._listener.close()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _write_config(self) -> None:
        secrets = self._stage.with_name("rsyncd.secrets")
        secrets.touch(mode=0o600)
        secrets.write_text(f"{USER}:{self._token}\n")
        self._config.write_text(
            # looking its peer's name up would cost 5 s where no name server answers
            f"use chroot = no\nmunge symlinks = no\nreverse lookup = no\nuid = 0\ngid = 0\nlog file = /dev/null\n"
            f"[{MODULE}]\npath = {self._stage}\nread only = no\nauth users = {USER}\nsecrets file = {secrets}\n"
        )

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                with connection:
                    self._hand_over(connection)
            except (OSError, WhimbrelError, ValueError) as error:
                self._complain(f"a connection for staged images failed: {error}")

    def _hand_over(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE_S)
        first = connection.recv(1, socket.MSG_PEEK)
        if first == b"@":
            connection.settimeout(None)
            self._children.append(
                subprocess.Popen(
                    ["rsync", "--daemon", "--no-detach", f"--config={self._config}"],
                    stdin=connection.fileno(),
                    stdout=connection.fileno(),
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            )
            return
        channel = PageChannel(connection)
        if not hmac.compare_digest(channel.expect(Kind.HELLO), self._token.encode()):
            raise ProtocolMismatch("whoever sent a layer does not know the token")
        kind, number, _, _ = channel.receive_header()
        if kind is not Kind.ROUND:
            raise ProtocolMismatch(f"{kind.name} where ROUND was due")
        connection.settimeout(None)
        self._children.append(serve(connection, self._stage / LAYERS / str(number), self._run_dir))
