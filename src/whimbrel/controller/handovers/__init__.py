"""Who carries handovers out, by name: a module here, or a user's own under the entry point ``whimbrel.handovers``, that
holds one `HandoverPort` named ``HANDOVERS``."""

from __future__ import annotations

from functools import cache

from whimbrel.controller.handovers.port import HandoverPort, Handovers, Settings, Tell
from whimbrel.model.errors import BadInput
from whimbrel.plan.discovery import find

DEFAULT = "answers"
ENTRY_POINTS = "whimbrel.handovers"


@cache
def known() -> dict[str, HandoverPort]:
    return find(__name__, __path__, "HANDOVERS", HandoverPort, ENTRY_POINTS)


def port_of(name: str) -> HandoverPort:
    """Raises BadInput for a name that none has."""
    try:
        return known()[name]
    except KeyError:
        raise BadInput(f"there is no handover port {name!r}: choose from {', '.join(known())}") from None


__all__ = ["DEFAULT", "HandoverPort", "Handovers", "Settings", "Tell", "known", "port_of"]
