"""Who may call the API: tokens of which only the SHA-256 is kept, each with a role, and sessions of browsers.

[api]
tokens = [{ name = "ops", sha256 = "…", role = "operate" }]   # `whimbrel controller token NAME` makes one
hosts = ["edge.example"]                # names that a proxy in front of a local listener is called by
max_body = "4MiB"
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from whimbrel.controller.listen import Listen
from whimbrel.model.errors import BadInput
from whimbrel.model.service import NAME_PATTERN
from whimbrel.model.units import parse_size_bytes

PREFIX = "whim_"
"""So that a token in a log or a repository is known for what it is."""
SESSION_S = 12 * 3600.0
MOST_SESSIONS = 1000
LEAST_BODY_BYTES, MOST_BODY_BYTES = 1 << 10, 1 << 30


class TokenRole(StrEnum):
    """READ: all GETs. REPORT: what a user's equipment posts, and nothing else. OPERATE: everything."""

    READ = "read"
    REPORT = "report"
    OPERATE = "operate"


class TokenEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    sha256: str
    role: TokenRole


class ApiEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tokens: tuple[TokenEntry, ...] = ()
    hosts: tuple[str, ...] = ()
    max_body: str = "4MiB"


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    tokens: tuple[TokenEntry, ...] = ()
    hosts: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """`name`: of the token; "" for a local caller where no token is asked for."""

    name: str
    role: TokenRole


LOCAL = Caller(name="", role=TokenRole.OPERATE)


def api_of(entry: ApiEntry, listen: Listen) -> ApiConfig:
    """Raises BadInput, also for an API that the network reaches and nothing protects."""
    for index, token in enumerate(entry.tokens):
        if not NAME_PATTERN.fullmatch(token.name):
            raise BadInput(f"[api]: token name {token.name!r} is not valid: use 1 to 40 of a-z, 0-9 and '-'")
        if token.name in {other.name for other in entry.tokens[:index]}:
            raise BadInput(f"[api]: token {token.name} is there twice: keep one")
        if not re.fullmatch(r"[0-9a-f]{64}", token.sha256):
            raise BadInput(
                f"[api]: sha256 of token {token.name} is no SHA-256 in hexadecimal: `whimbrel controller token "
                f"{token.name}` prints the line"
            )
    for host in entry.hosts:
        if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", host):
            raise BadInput(f"[api]: {host!r} is no host name: write it without scheme and port, like edge.example")
    try:
        max_body_bytes = int(parse_size_bytes(entry.max_body))
    except BadInput as error:
        raise BadInput(f"[api]: max_body: {error}") from error
    if not LEAST_BODY_BYTES <= max_body_bytes <= MOST_BODY_BYTES:
        raise BadInput(f"[api]: max_body {entry.max_body!r} is not possible: use 1KiB to 1GiB")
    if not listen.is_local and not entry.tokens:
        raise BadInput(
            f"listen {str(listen)!r} opens the API to the network, and [api] names no token: make one with "
            "`whimbrel controller token NAME`, or listen locally (unix:/PATH or tcp:127.0.0.1:PORT)"
        )
    return ApiConfig(tokens=entry.tokens, hosts=tuple(host.lower() for host in entry.hosts),
                     max_body_bytes=max_body_bytes)  # fmt: skip


def new_token() -> str:
    """256 bits of chance."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def config_line(name: str, role: TokenRole, token: str) -> str:
    """What `[api] tokens` is to hold."""
    return f'{{ name = "{name}", sha256 = "{digest_of(token)}", role = "{role}" }}'


class Access:
    """Tokens and the sessions that were begun with them; sessions end with the controller."""

    def __init__(self, tokens: Iterable[TokenEntry]) -> None:
        self._by_digest = {token.sha256: Caller(name=token.name, role=token.role) for token in tokens}
        self._sessions: dict[str, tuple[Caller, float]] = {}

    @property
    def asks(self) -> bool:
        """Whether callers have to say who they are."""
        return bool(self._by_digest)

    def by_token(self, token: str) -> Caller | None:
        # The digest is looked up, not the token: what its comparison takes tells nothing of the token.
        return self._by_digest.get(digest_of(token))

    def by_session(self, session: str) -> Caller | None:
        caller, until_s = self._sessions.get(digest_of(session), (None, 0.0))
        return caller if time.monotonic() < until_s else None

    def begin(self, caller: Caller) -> str:
        """A new session; the oldest makes room for it."""
        now_s = time.monotonic()
        for key, (_, until_s) in list(self._sessions.items()):
            if until_s < now_s or len(self._sessions) >= MOST_SESSIONS:
                del self._sessions[key]
        session = secrets.token_urlsafe(32)
        self._sessions[digest_of(session)] = (caller, now_s + SESSION_S)
        return session

    def end(self, session: str) -> None:
        self._sessions.pop(digest_of(session), None)


def allows(role: TokenRole, method: str, path: str) -> bool:
    """What a role may do."""
    if role is TokenRole.OPERATE:
        return True
    if role is TokenRole.REPORT:
        return method == "POST" and re.fullmatch(r"/v1/users/[^/]+/(events|discovery)", path) is not None
    return method in ("GET", "HEAD")
