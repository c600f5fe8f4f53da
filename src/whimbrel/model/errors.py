"""Every error that Whimbrel raises on purpose.

WhimbrelError                 exit code 1; `str()` is one line: what happened, where, the way out
├── BadInput                  the request cannot be meant: unknown name, malformed image, address in use
├── Refused                   the request is clear, but this host, image or process cannot do it (preflight)
├── Conflict                  something else is under way: a migration of the same service
├── Unreachable               an agent, the controller or the link did not answer
├── ProtocolMismatch          the two sides speak different versions
├── StepFailed                a step of a migration failed; the source runs on unless `committed`
└── Cancelled                 asked for by `migration cancel`
"""

from __future__ import annotations

__all__ = [
    "BadInput",
    "Cancelled",
    "Conflict",
    "ProtocolMismatch",
    "Refused",
    "StepFailed",
    "Unreachable",
    "WhimbrelError",
    "error_from_wire",
]


class WhimbrelError(Exception):
    """Base of all errors. `str(error)` is one clear line that names the cause and the way out."""

    code = "error"


class BadInput(WhimbrelError):
    code = "bad-input"


class Refused(WhimbrelError):
    code = "refused"


class Conflict(WhimbrelError):
    code = "conflict"


class Unreachable(WhimbrelError):
    code = "unreachable"


class ProtocolMismatch(WhimbrelError):
    code = "protocol-mismatch"


class StepFailed(WhimbrelError):
    code = "step-failed"


class Cancelled(WhimbrelError):
    code = "cancelled"


_BY_CODE = {
    kind.code: kind
    for kind in (
        WhimbrelError,
        BadInput,
        Refused,
        Conflict,
        Unreachable,
        ProtocolMismatch,
        StepFailed,
        Cancelled,
    )
}


def error_from_wire(code: str, message: str) -> WhimbrelError:
    """Rebuild an error that another process reported as (code, message); unknown codes become the base class."""
    return _BY_CODE.get(code, WhimbrelError)(message)
