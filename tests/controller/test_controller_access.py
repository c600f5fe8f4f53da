"""Who may call the API: tokens, roles, sessions of browsers, the Host and Origin of a request, how much it sends."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from planning_people import report
from test_controller_api import check_problem

from fakes import FakeRegion, free_port
from live_controller import LiveController
from whimbrel.cli.main import run
from whimbrel.client.token import token_of
from whimbrel.controller.access import TokenRole, config_line, digest_of, new_token
from whimbrel.controller.client import ControllerClient
from whimbrel.controller.config import parse
from whimbrel.model.errors import BadInput, WhimbrelError

TOKENS = {role: new_token() for role in TokenRole}
LIMIT = 64 << 10
CONFIG = (
    'listen = "unix:/x/c.sock"\nstate_dir = "/x"\n[[nodes]]\nname = "e"\nrole = "edge"\nhost = "192.0.2.1"\n'
    'port = 1\noverlay_host = "192.0.2.1"\n'
)
API = (
    f"\n[api]\nmax_body = '{LIMIT}'\nhosts = ['Edge.Example']\ntokens = ["
    + ", ".join(config_line(f"t-{role}", role, token) for role, token in TOKENS.items())
    + "]\n"
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    """A controller with tokens, at TCP."""
    with FakeRegion() as region:
        place = f"tcp:127.0.0.1:{free_port()}"
        directory = Path(tmp_path_factory.mktemp("guarded"))
        live = LiveController(region, directory, listen=place, more=API, token=TOKENS[TokenRole.OPERATE])
        live.start()
        yield live
        live.stop()


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    """A controller without tokens, at TCP."""
    with FakeRegion() as region:
        place = f"tcp:127.0.0.1:{free_port()}"
        live = LiveController(region, Path(tmp_path_factory.mktemp("trusting")), listen=place)
        live.start()
        yield live
        live.stop()


def http_of(live: LiveController, role: TokenRole | None = None, **headers: str) -> httpx.Client:
    if role is not None:
        headers["Authorization"] = f"Bearer {TOKENS[role]}"
    return httpx.Client(base_url=f"http://{live.address.removeprefix('tcp:')}", headers=headers, verify=False)


# --- tokens -------------------------------------------------------------------------------------------------
def test_without_a_token_nothing_is_told(guarded: LiveController) -> None:
    with http_of(guarded) as http:
        for path in ("/v1/nodes", "/v1/region", "/v1/events", "/v1/nothing", "/metrics", "/rni/v2/x"):
            answer = http.get(path)
            check_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")
        check_problem(http.post("/v1/services", json={}), 401, "unauthorized")
        assert http.get("/v1/health").status_code == 200
        assert http.get("/openapi.json").status_code == 200
        for wrong in ("Bearer x", "Bearer", "Basic eDp4", "Bearer " + digest_of(TOKENS[TokenRole.OPERATE])):
            check_problem(http.get("/v1/nodes", headers={"Authorization": wrong}), 401, "unauthorized")


def test_a_refusal_has_the_type_that_the_interfaces_file_says(guarded: LiveController) -> None:
    with http_of(guarded) as http, http_of(guarded, TokenRole.READ) as reader:
        answers = {path: http.get(f"{path}/subscriptions/x") for path in ("/amsi/v1", "/rni/v2", "/location/v2")}
        answers["/amsi/v1/"] = reader.post("/amsi/v1/subscriptions", json={})
        for path, answer in answers.items():
            assert answer.status_code in (401, 403)
            kind = "application/json" if "amsi" in path else "application/problem+json"
            assert answer.headers["content-type"] == kind
            assert answer.json()["status"] == answer.status_code


def test_a_role_may_do_what_it_is_for(guarded: LiveController) -> None:
    event = {"event": "note", "user": "u", "unix_s": 1.0, "elapsed_s": 0.0, "kind": "k", "text": "t"}
    expected = {
        TokenRole.READ: (200, 403, 403),
        TokenRole.REPORT: (403, 403, 200),
        TokenRole.OPERATE: (200, 404, 200),
    }
    for role, statuses in expected.items():
        with http_of(guarded, role) as http:
            found = (
                http.get("/v1/nodes").status_code,
                http.delete("/v1/services/nothing").status_code,
                http.post("/v1/users/u/events", json=event).status_code,
            )
            assert found == statuses, role


def test_the_command_line_shows_its_token(
    guarded: LiveController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["node", "ls", "--controller", guarded.address]
    monkeypatch.delenv("WHIMBREL_TOKEN", raising=False)
    monkeypatch.delenv("WHIMBREL_TOKEN_FILE", raising=False)
    assert run(argv) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "WHIMBREL_TOKEN" in told
    monkeypatch.setenv("WHIMBREL_TOKEN", TOKENS[TokenRole.READ])
    assert run(argv) == 0
    assert "edge-1" in capsys.readouterr().out
    monkeypatch.delenv("WHIMBREL_TOKEN")
    (tmp_path / "token").write_text(TOKENS[TokenRole.READ] + "\n")
    monkeypatch.setenv("WHIMBREL_TOKEN_FILE", str(tmp_path / "token"))
    assert run(argv) == 0
    monkeypatch.setenv("WHIMBREL_TOKEN_FILE", str(tmp_path / "none"))
    assert run(argv) == 1
    assert "WHIMBREL_TOKEN_FILE" in capsys.readouterr().err


def test_a_token_that_is_none_is_named() -> None:
    with pytest.raises(BadInput, match="copy it anew"):
        ControllerClient("unix:/x", "two words")
    assert token_of({"WHIMBREL_TOKEN": " x "}) == "x"


def test_a_made_token_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["controller", "token", "ops", "--role", "read"]) == 0
    out, err = capsys.readouterr()
    line = next(one for one in err.splitlines() if "tokens = [" in one).removeprefix("whimbrel: ")
    (token,) = parse(f"{CONFIG}\n[api]\n{line}").api.tokens
    assert (token.name, token.role) == ("ops", TokenRole.READ)
    assert token.sha256 == digest_of(out.strip())


# --- sessions -----------------------------------------------------------------------------------------------
def test_a_browser_logs_in_reads_and_changes_with_the_header_only(guarded: LiveController) -> None:
    with http_of(guarded) as http:
        assert http.get("/v1/session").json() == {"needed": True, "name": "", "role": None}
        check_problem(http.post("/v1/session", json={"token": "wrong"}), 401, "unauthorized")
        answer = http.post("/v1/session", json={"token": TOKENS[TokenRole.OPERATE]})
        assert answer.status_code == 201
        cookie = answer.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=strict", "Path=/"):
            assert part in cookie
        assert TOKENS[TokenRole.OPERATE] not in cookie
        assert http.get("/v1/session").json() == {"needed": True, "name": "t-operate", "role": "operate"}
        assert http.get("/v1/nodes").status_code == 200
        check_problem(http.delete("/v1/services/nothing"), 403, "forbidden")
        check_problem(http.delete("/v1/services/nothing", headers={"X-Whimbrel": "1"}), 404, "bad-input")
        kept = dict(http.cookies)
        assert http.delete("/v1/session").status_code == 204
        http.cookies.update(kept)
        check_problem(http.get("/v1/nodes"), 401, "unauthorized")


def test_without_tokens_no_session_is_needed(trusting: LiveController) -> None:
    with http_of(trusting) as http:
        assert http.get("/v1/session").json() == {"needed": False, "name": "", "role": "operate"}
        answer = http.post("/v1/session", json={"token": "any"})
        assert answer.status_code == 201
        assert "set-cookie" not in answer.headers


# --- pages of others ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8077", "127.0.0.1.evil.example", "", "192.0.2.1"])
def test_a_name_that_is_not_ours_is_refused(trusting: LiveController, host: str) -> None:
    with http_of(trusting) as http:
        check_problem(http.get("/v1/nodes", headers={"Host": host}), 421, "bad-input")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8077", "[::1]:8077", "127.9.9.9"])
def test_names_of_this_host_are_ours(trusting: LiveController, host: str) -> None:
    with http_of(trusting) as http:
        assert http.get("/v1/nodes", headers={"Host": host}).status_code == 200


def test_a_proxy_may_call_by_a_name_that_is_configured(guarded: LiveController) -> None:
    with http_of(guarded, TokenRole.READ) as http:
        assert http.get("/v1/nodes", headers={"Host": "edge.example"}).status_code == 200
        assert http.get("/v1/nodes", headers={"Host": "other.example"}).status_code == 421


def test_a_page_of_another_site_changes_nothing(trusting: LiveController) -> None:
    with http_of(trusting) as http:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            answer = http.delete("/v1/services/nothing", headers={"Origin": origin})
            check_problem(answer, 403, "forbidden")
        own = str(http.base_url).rstrip("/")
        check_problem(http.delete("/v1/services/nothing", headers={"Origin": own}), 404, "bad-input")


@pytest.mark.parametrize("origin", ["http://[", "http://[x]/", "http://]", "//["])
def test_an_origin_that_is_none_changes_nothing(guarded: LiveController, trusting: LiveController, origin: str) -> None:
    for live in (guarded, trusting):
        with http_of(live) as http:
            check_problem(http.delete("/v1/services/nothing", headers={"Origin": origin}), 403, "forbidden")


@pytest.mark.parametrize("host", ["[", "[::1", "[x]:1", "a b", "a/b", "a:port", "a:99999", "a@b", "a?b", "]"])
def test_a_host_that_is_none_is_refused(guarded: LiveController, host: str) -> None:
    """Before anything makes a URL of it."""
    with http_of(guarded, TokenRole.OPERATE) as http:
        for path in ("/v1/decisions?limit=1", "/v1/session", "/rni/v2/subscriptions/x", "/v1/nothing", "/"):
            check_problem(http.get(path, headers={"Host": host}), 400, "bad-input")
        check_problem(http.post("/v1/session", json={"token": "x"}, headers={"Host": host}), 400, "bad-input")


# --- how much -----------------------------------------------------------------------------------------------
def test_a_body_that_is_too_large_is_refused(guarded: LiveController) -> None:
    with http_of(guarded, TokenRole.OPERATE) as http:
        body = b'{"name": "' + b"x" * LIMIT + b'"}'
        headers = {"Content-Type": "application/json"}
        check_problem(http.post("/v1/services", content=body, headers=headers), 413, "bad-input")

        def parts() -> Iterator[bytes]:
            for start in range(0, len(body), 8192):
                yield body[start : start + 8192]

        for path in ("/v1/services", "/v1/users/u/events"):
            check_problem(http.post(path, content=parts(), headers=headers), 413, "bad-input")
        assert http.get("/v1/nodes").status_code == 200


def test_a_length_that_nobody_can_send_is_refused_before_a_byte_of_it(guarded: LiveController) -> None:
    host, _, port = guarded.address.removeprefix("tcp:").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/services HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKENS[TokenRole.OPERATE]}\r\n"
            "Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_what_is_refused_before_a_route_is_reached_is_described(guarded: LiveController) -> None:
    """Of every operation: without a token, by a role that may not, from another site's page, for another host, too
    much."""
    much = b"x" * (LIMIT + 1)
    with (
        http_of(guarded) as http,
        http_of(guarded, TokenRole.CONSUMER) as consumer,
        http_of(guarded, TokenRole.OPERATE) as operator,
    ):
        document = http.get("/openapi.json").json()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                place = path.replace("{", "").replace("}", "")
                found = {
                    asked.request(method, place, headers=headers, content=content).status_code
                    for asked, headers, content in (
                        (http, {}, b""), (consumer, {}, b""), (http, {"Origin": "http://evil.example"}, b""),
                        (http, {"Host": "evil.example"}, b""), (http, {"Host": "a b"}, b""), (operator, {}, much),
                    )
                }  # fmt: skip
                assert {400, 413, 421} <= found, f"{method} {path}: {found}"
                assert found <= {int(status) for status in operation["responses"]}, f"{method} {path}: {found}"
                assert operation.get("security") == ([] if 401 not in found else None), f"{method} {path}"
        schemes = document["components"]["securitySchemes"]
        assert document["security"] == [{}, *({name: []} for name in schemes)]
        http.post("/v1/session", json={"token": TOKENS[TokenRole.READ]})
        assert [one["name"] for one in schemes.values() if one.get("in") == "cookie"] == list(http.cookies)


# --- the configuration --------------------------------------------------------------------------------------
def test_a_listener_of_the_network_without_tokens_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    with FakeRegion() as region:
        file.write_text(region.config_text("tcp:0.0.0.0:8077", str(tmp_path)))
    argv = [sys.executable, "-m", "whimbrel", "controller", "--config", str(file)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "whimbrel controller token" in ended.stderr


GOOD = "a" * 64
ENTRY = f"{{ name = 'a', sha256 = '{GOOD}', role = 'read' }}"


@pytest.mark.parametrize(
    ("api", "told"),
    [
        (f"tokens = [{{ name = 'A b', sha256 = '{GOOD}', role = 'read' }}]", "token name"),
        ("tokens = [{ name = 'a', sha256 = 'abc', role = 'read' }]", "SHA-256"),
        (f"tokens = [{{ name = 'a', sha256 = '{GOOD}', role = 'root' }}]", "role"),
        ("tokens = [" + ",".join([ENTRY] * 2) + "]", "twice"),
        ("hosts = ['http://x']", "host name"),
        ("max_body = '1'", "1KiB"),
        ("max_body = 'much'", "max_body"),
        ("colour = 'red'", "colour"),
    ],
)
def test_what_is_wrong_with_it_is_named(api: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        parse(f"{CONFIG}\n[api]\n{api}")


def test_a_user_that_reports_needs_its_own_token_only(guarded: LiveController) -> None:
    with ControllerClient(guarded.address, TOKENS[TokenRole.REPORT]) as client:
        client.tell(report())
        with pytest.raises(WhimbrelError, match="role report"):
            client.nodes()
