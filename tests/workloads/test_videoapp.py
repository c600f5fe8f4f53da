"""The video service: log-in, sessions, ranges of bytes, and what users may do to it."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel.workloads.videoapp import service

FILM = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The service with a film that is none."""
    folder = tmp_path_factory.mktemp("videoapp")
    source = Path(service.__file__).parent
    shutil.copy(source / "service.py", folder)
    shutil.copytree(source / "pages", folder / "pages")
    (folder / "film.mp4").write_bytes(FILM)
    (folder / "film.json").write_text(json.dumps({"seconds": 10, "bytes": len(FILM)}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    env = {"PORT": str(number), "USERS": "ann:secret,bob:other", "PACE": "0"}
    process = subprocess.Popen([sys.executable, folder / "service.py"], env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"serving" in process.stdout.readline()
    yield number
    alive = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    assert alive, "no user's behaviour ends the service"


def ask(port: int, method: str, path: str, body: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        conn.request(method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = conn.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        conn.close()


def log_in(port: int, user: str = "ann", password: str = "secret") -> str:
    status, headers, _ = ask(port, "POST", "/login", f"user={user}&password={password}")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    return headers["set-cookie"].partition(";")[0]


def test_only_who_logged_in_sees_the_film(port: int) -> None:
    assert b"<form" in ask(port, "GET", "/")[2]
    for path in ("/film.mp4", "/api/session"):
        assert ask(port, "GET", path)[0] == ask(port, "GET", path, Cookie="session=made-up")[0] == 401
    for fields in ("user=ann&password=other", "user=eve&password=secret", "user=ann", "", "%ff=%ff&&&=;"):
        status, headers, _ = ask(port, "POST", "/login", fields)
        assert status == 403
        assert "set-cookie" not in headers
    cookie = log_in(port)
    assert b'logged in as <b id="user">ann</b>' in ask(port, "GET", "/", Cookie=cookie)[2]
    assert ask(port, "GET", "/film.mp4", Cookie=cookie)[2] == FILM


def test_a_session_keeps_what_was_watched(port: int) -> None:
    ann, bob = log_in(port), log_in(port, "bob", "other")
    for number in range(1, 4):
        told = json.dumps({"seconds": 1.5, "position_s": 1.5 * number})
        session = json.loads(ask(port, "POST", "/api/watched", told, Cookie=ann)[2])
        assert (session["posts"], session["watched_s"], session["position_s"]) == (number, 1.5 * number, 1.5 * number)
    assert json.loads(ask(port, "GET", "/api/session", Cookie=bob)[2])["watched_s"] == 0
    assert b'data-position="4.500"' in ask(port, "GET", "/", Cookie=ann)[2]
    assert ask(port, "POST", "/logout", Cookie=ann)[0] == 303
    assert ask(port, "GET", "/api/session", Cookie=ann)[0] == 401


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("0-9", 0, 9), ("100-", 100, len(FILM) - 1), ("-5", len(FILM) - 5, len(FILM) - 1),
                                 ("10-999999999", 10, len(FILM) - 1)]
)  # fmt: skip
def test_ranges(port: int, asked: str, first: int, last: int) -> None:
    status, headers, body = ask(port, "GET", "/film.mp4", Cookie=log_in(port), Range=f"bytes={asked}")
    assert (status, headers["content-range"]) == (206, f"bytes {first}-{last}/{len(FILM)}")
    assert body == FILM[first : last + 1]


def test_ranges_that_are_none(port: int) -> None:
    cookie = log_in(port)
    assert ask(port, "GET", "/film.mp4", Cookie=cookie, Range=f"bytes={len(FILM)}-")[0] == 416
    for asked in ("bytes=9-1", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=1-2,5-6"):
        assert ask(port, "GET", "/film.mp4", Cookie=cookie, Range=asked)[0] == 200, asked


def test_bad_requests_are_answered_and_change_nothing(port: int) -> None:
    cookie = log_in(port)
    for body in ("", "{", "[]", "null", '{"seconds": "x", "position_s": 1}', '{"seconds": NaN, "position_s": 1}',
                 '{"seconds": 1e999, "position_s": 1}', '{"seconds": 1%s, "position_s": 1}' % ("0" * 400),
                 "[" * 4000):  # fmt: skip
        assert ask(port, "POST", "/api/watched", body, Cookie=cookie, Content_Length=str(len(body)))[0] == 400, body
    assert ask(port, "POST", "/api/watched", "x" * 5000, Cookie=cookie)[0] == 413
    assert ask(port, "GET", "/../service.py")[0] == 404
    many = "&".join(f"a{number}=1" for number in range(20))
    assert ask(port, "POST", "/login", many, Content_Length=str(len(many)))[0] == 400
    assert ask(port, "POST", "/logout", Cookie="a@b=1")[0] == 303
    assert ask(port, "DELETE", "/")[0] == 501
    session = json.loads(ask(port, "GET", "/api/session", Cookie=cookie)[2])
    assert (session["posts"], session["watched_s"]) == (0, 0)


def test_a_users_name_is_text_on_the_form(port: int) -> None:
    page = ask(port, "POST", "/login", "user=%22%3E%3Cscript%3E&password=x")[2]
    assert b"<script>" not in page
    assert b"&quot;&gt;&lt;script&gt;" in page


@pytest.mark.parametrize("text", ["", "ann", "ann:", ":secret", "ann:secret,"])
def test_users_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME:PASSWORD"):
        service.users_of(text)
