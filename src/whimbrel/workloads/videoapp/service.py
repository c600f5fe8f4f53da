"""A video service with a log-in (`relocation`, figure 10): a form, a session, a page with a player, a film.

Sessions, and how long each viewer has watched, live in this process's memory and nowhere else: they are there after a
move because the process is the same. Runs inside the container, standard library only.
"""

from __future__ import annotations

import hmac
import html
import json
import os
import re
import secrets
import socket
import string
import sys
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

FOLDER = Path(__file__).parent
MOST_BODY_BYTES = 4096
MOST_SESSIONS = 10_000
MOST_CONNECTIONS = 256
IDLE_S = 3600.0  # a player keeps its connection for as long as it plays
BLOCK_BYTES = 32 << 10
AHEAD_S = 2.0  # of the film is sent at once, the rest at the pace
LONGEST_STEP_S = 5.0  # a page posts what it played every second: more at once is not believed
COOKIE = "session"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
STATIC = {"/style.css": ("style.css", "text/css"), "/player.js": ("player.js", "text/javascript")}


@dataclass
class Session:
    """One viewer, logged in. `posts` counts what its page told."""

    user: str
    began_unix_s: float = field(default_factory=time.time)
    watched_s: float = 0.0
    position_s: float = 0.0
    posts: int = 0

    def told(self, service: Service) -> dict[str, Any]:
        return {"user": self.user, "watched_s": round(self.watched_s, 3), "position_s": round(self.position_s, 3),
                "posts": self.posts, "all_posts": service.posts,
                "session_age_s": round(time.time() - self.began_unix_s, 1)}  # fmt: skip


class Service:
    """What all connections share."""

    def __init__(self, folder: Path, users: dict[str, str], pace: float) -> None:
        self.users = users
        self.film = folder / "film.mp4"
        self.film_bytes = self.film.stat().st_size
        about = json.loads((folder / "film.json").read_text())
        self.bytes_per_s = self.film_bytes / about["seconds"]
        self.pace = pace
        self.pages = {path.name: path.read_text() for path in (folder / "pages").iterdir()}
        self.sessions: dict[str, Session] = {}
        self.posts = 0
        self.lock = threading.Lock()
        self.places = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def log_in(self, user: str, password: str) -> str | None:
        """The new session's token; None when that is not the user's password."""
        right = self.users.get(user, secrets.token_hex())
        if not hmac.compare_digest(right.encode(), password.encode()) or user not in self.users:
            return None
        with self.lock:
            while len(self.sessions) >= MOST_SESSIONS:
                self.sessions.pop(next(iter(self.sessions)))  # the oldest
            token = secrets.token_urlsafe(24)
            self.sessions[token] = Session(user)
        return token

    def watched(self, session: Session, seconds: float, position_s: float) -> dict[str, Any]:
        with self.lock:
            session.watched_s += min(max(seconds, 0.0), LONGEST_STEP_S)
            session.position_s = max(position_s, 0.0)
            session.posts += 1
            self.posts += 1
            return session.told(self)


class Handler(BaseHTTPRequestHandler):
    """One connection; HTTP/1.1, kept open."""

    protocol_version = "HTTP/1.1"
    server_version = "videoapp"
    sys_version = ""
    timeout = IDLE_S
    service: Service

    def log_message(self, *_: object) -> None:  # who watches what is nobody's business
        pass

    def do_GET(self) -> None:
        session = self.session()
        if self.path in STATIC:
            name, kind = STATIC[self.path]
            self.answer(HTTPStatus.OK, self.service.pages[name].encode(), kind)
        elif self.path == "/":
            if session is None:
                self.login_page()
            else:
                self.page("watch.html", user=session.user, position=f"{session.position_s:.3f}")
        elif self.path == "/film.mp4":
            if session is None:
                self.refuse(HTTPStatus.UNAUTHORIZED, "log in first")
            else:
                self.send_film()
        elif self.path == "/api/session":
            if session is None:
                self.refuse(HTTPStatus.UNAUTHORIZED, "log in first")
            else:
                self.json(session.told(self.service))
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MOST_BODY_BYTES:
            self.close_connection = True
            return self.refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_BODY_BYTES} bytes, and say how many"
            )
        body = self.rfile.read(length)
        session = self.session()
        if self.path == "/login":
            return self.log_in(body)
        if self.path == "/logout":
            return self.log_out()
        if self.path != "/api/watched":
            return self.refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
        if session is None:
            return self.refuse(HTTPStatus.UNAUTHORIZED, "log in first")
        try:
            told = json.loads(body)
            seconds, position_s = float(told["seconds"]), float(told["position_s"])
            if not (abs(seconds) < 1e6 and abs(position_s) < 1e6):
                raise ValueError
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return self.refuse(HTTPStatus.BAD_REQUEST, 'post {"seconds": ..., "position_s": ...}')
        return self.json(self.service.watched(session, seconds, position_s))

    # --- log-in ---------------------------------------------------------------------------------------------
    def token(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return ""
        return found.value if found is not None else ""

    def session(self) -> Session | None:
        return self.service.sessions.get(self.token())

    def log_in(self, body: bytes) -> None:
        try:
            fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)
        except ValueError:
            return self.refuse(HTTPStatus.BAD_REQUEST, "a log-in has a user and a password")
        user, password = (fields.get(name, [""])[0] for name in ("user", "password"))
        token = self.service.log_in(user, password)
        if token is None:
            return self.login_page("That user and password do not go together.", user, HTTPStatus.FORBIDDEN)
        return self.go_home(f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/")

    def log_out(self) -> None:
        self.service.sessions.pop(self.token(), None)
        self.go_home(f"{COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0")

    def go_home(self, cookie: str) -> None:
        self.answer(HTTPStatus.SEE_OTHER, b"", "text/plain", {"Location": "/", "Set-Cookie": cookie})

    # --- the film -------------------------------------------------------------------------------------------
    def send_film(self) -> None:
        """Whole or a range (RFC 9110, 14), at the film's own rate times `PACE`, so that it is always under way."""
        size = self.service.film_bytes
        span = byte_range(self.headers.get("Range", ""), size)
        if span is None:
            self.answer(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", "video/mp4", {"Content-Range": f"bytes */{size}"}
            )
            return
        first, last, partial = span
        self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        for name, value in {"Content-Type": "video/mp4", "Content-Length": str(last - first + 1),
                            "Accept-Ranges": "bytes",
                            "Cache-Control": "no-store", **HEADERS}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_paced(first, last)

    def send_paced(self, first: int, last: int) -> None:
        rate = self.service.bytes_per_s * self.service.pace
        begin_s = time.monotonic()
        with self.service.film.open("rb") as film:
            film.seek(first)
            sent, total = 0, last - first + 1
            while sent < total:
                block = film.read(min(BLOCK_BYTES, total - sent))
                if not block:
                    return
                if rate:
                    due_s = begin_s + (sent - AHEAD_S * self.service.bytes_per_s) / rate
                    time.sleep(max(0.0, min(1.0, due_s - time.monotonic())))
                self.wfile.write(block)
                sent += len(block)

    # --- answers --------------------------------------------------------------------------------------------
    def login_page(self, problem: str = "", user: str = "", status: HTTPStatus = HTTPStatus.OK) -> None:
        self.page("login.html", status, problem=problem, user=user)

    def page(self, name: str, status: HTTPStatus = HTTPStatus.OK, **values: str) -> None:
        escaped = {key: html.escape(value) for key, value in values.items()}
        text = string.Template(self.service.pages[name]).substitute(escaped)
        self.answer(status, text.encode(), "text/html; charset=utf-8")

    def json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.answer(status, json.dumps(value).encode(), "application/json")

    def refuse(self, status: HTTPStatus, why: str) -> None:
        self.json({"error": why}, status)

    def answer(self, status: HTTPStatus, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
                            **HEADERS, **(more or {})}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def byte_range(text: str, size: int) -> tuple[int, int, bool] | None:
    """First and last byte, and whether that is a part; None when no byte of the range is there. What is no single
    range of bytes is ignored, as RFC 9110 has it."""
    found = re.fullmatch(r"bytes=([0-9]{0,15})-([0-9]{0,15})", text.strip())
    if found is None or found.groups() == ("", ""):
        return 0, size - 1, False
    first, last = found.groups()
    if not first:
        begin = max(0, size - int(last))
        return (begin, size - 1, True) if int(last) else None
    if int(first) >= size or (last and int(last) < int(first)):
        return None if int(first) >= size else (0, size - 1, False)
    return int(first), min(int(last), size - 1) if last else size - 1, True


class Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are not too many."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.service = service
        super().__init__(address, type("BoundHandler", (Handler,), {"service": service}))

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)  # without the look-up of a name, which asks a network
        self.server_name, self.server_port = "videoapp", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.service.places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.service.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer who leaves in the middle of the film is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def users_of(text: str) -> dict[str, str]:
    """``ann:secret,bob:other``. Raises ValueError."""
    found = {}
    for entry in text.split(","):
        user, colon, password = entry.strip().partition(":")
        if not user or not colon or not password:
            raise ValueError(f"USERS has {entry!r}: write NAME:PASSWORD, with a comma between")
        found[user] = password
    return found


def main() -> None:
    try:
        pace = float(os.environ.get("PACE", "1.5"))
        service = Service(FOLDER, users_of(os.environ.get("USERS", "viewer:whimbrel")), pace)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"videoapp: {error}")
    if "--check" in sys.argv:
        return
    port = int(os.environ.get("PORT", "8080"))
    server = Server(("0.0.0.0", port), service)
    print(f"serving on port {port}, pid {os.getpid()}", flush=True)
    server.serve_forever(poll_interval=3600)


if __name__ == "__main__":
    main()
