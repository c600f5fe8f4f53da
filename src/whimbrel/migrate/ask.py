"""Once GO may have left, only the destination knows who runs; so whoever needs to know asks until it answers.

A destination that is gone for good never does. Then an operator, who can see what became of it, says it in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from whimbrel.model.errors import WhimbrelError
from whimbrel.model.node import Endpoint
from whimbrel.wire.calls import AbortIncoming, AwaitIncoming, Fate
from whimbrel.wire.rpc import Peer

ANSWER_TIMEOUT_S = 5.0
PAUSE_S = 0.2


@dataclass
class Verdict:
    """Of an operator, about one migration. It is heard only while the destination's word is `awaited` in vain."""

    fate: Fate | None = None
    awaited: bool = False

    def give(self, *, runs_there: bool) -> bool:
        """False when nobody waits for it. If it does not run there, what it may have done there is lost."""
        if self.awaited:
            self.fate = Fate.RUNS if runs_there else Fate.LOST
        return self.awaited


async def ask_until_answered(
    destination: Endpoint,
    question: AbortIncoming | AwaitIncoming,
    waiting: Callable[[str], None],
    verdict: Verdict,
) -> Fate:
    """An answer that is no answer (an error) will not do. Each time on a new connection: one that was under way when
    the link died is retried by the kernel ever more rarely. `waiting` is told why there is no answer yet."""
    while verdict.fate is None:
        try:
            async with Peer(destination.name, destination.host, destination.port) as peer:
                fate: Fate = await peer.call(question, timeout_s=ANSWER_TIMEOUT_S)
                verdict.awaited = False
                return fate
        except WhimbrelError as error:
            waiting(f"waiting for the destination's word: {error}")
            verdict.awaited = True
            await asyncio.sleep(PAUSE_S)
    return verdict.fate


def lost_at(destination: str, source: str) -> str:
    """What a user must know when a service was lost after the commit."""
    return (
        f"the service was lost on {destination} before all of its pages were in place: the receiving process or the "
        f"machine failed; it runs on at {source} as it was at the freeze: what it did since is lost, and connections "
        "that carried data since may break"
    )
