"""The socket that an API is served at: apart from the controller, because the dashboard's relay needs no more of it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from whimbrel.controller.listen import Listen
from whimbrel.model.errors import BadInput, Conflict


def open_listener(listen: Listen) -> socket.socket:
    """A bound socket; a UNIX one is for its owner only (mode 0600), and a dead one in its place is replaced.

    Raises Conflict when somebody listens there already, BadInput when the place cannot be used.
    """
    try:
        return _bind_unix(Path(listen.path)) if listen.path else _bind_tcp(listen)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"somebody listens at {listen} already: stop that controller or choose another `listen`"
            ) from error
        raise BadInput(f"cannot listen at {listen}: {error.strerror}; choose another `listen`") from error


def _bind_tcp(listen: Listen) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_unix(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
                    raise OSError(errno.EADDRINUSE, "in use")
            path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
    except BaseException:
        listener.close()
        raise
    return listener
