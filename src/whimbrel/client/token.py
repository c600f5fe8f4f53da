"""The token that a client of the controller shows: of an operator's command line, or of a user's equipment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from whimbrel.model.errors import BadInput

VARIABLE, FILE_VARIABLE = "WHIMBREL_TOKEN", "WHIMBREL_TOKEN_FILE"


def token_of(environment: Mapping[str, str]) -> str:
    """``WHIMBREL_TOKEN``, else what is in the file that ``WHIMBREL_TOKEN_FILE`` names, else "". Raises BadInput."""
    if token := environment.get(VARIABLE, "").strip():
        return token
    name = environment.get(FILE_VARIABLE, "")
    if not name:
        return ""
    try:
        return token_in(name)
    except BadInput as error:
        raise BadInput(f"{FILE_VARIABLE}: {error}") from error


def token_in(file: str) -> str:
    """What a file holds, "" for nothing. Raises BadInput."""
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the token in {file}: {error}") from error


def authorization(token: str) -> dict[str, str]:
    """The header; none without a token. Raises BadInput for what no header can hold."""
    if not token:
        return {}
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadInput("the token holds characters that none has: copy it anew from `whimbrel controller token`")
    return {"Authorization": f"Bearer {token}"}
