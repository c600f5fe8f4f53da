"""Who carries a handover out: the lab's radio, a network's API, or a plug-in of the user's own."""

from __future__ import annotations

from typing import Protocol

import msgspec


class HandedOver(msgspec.Struct, frozen=True, kw_only=True):
    """`interruption_ms`: from the last moment at which something could pass by `source` to the first by `target`;
    `began_unix_s`: that last moment, on the wall clock."""

    user: str
    source: str
    target: str
    interruption_ms: float
    began_unix_s: float


class Radio(Protocol):
    """Methods block; call them from a worker thread. Only one handover of a user runs at a time."""

    def attach(self, user: str, target: str) -> None:
        """Be at `target` from now on, by which traffic passes at once. Raises BadInput for unknown names."""

    def detach(self, user: str) -> None:
        """Out of coverage: nothing passes by any base station until `attach`."""

    def hand_over(self, user: str, target: str) -> HandedOver:
        """Move the user to `target`; returns when traffic passes by it. Raises BadInput for unknown names or when it is
        there already, Conflict while another one runs, StepFailed when it did not work: the user is then where it
        was."""
