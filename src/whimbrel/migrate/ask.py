"""Once GO may have left, only the destination knows who runs; so whoever needs to know asks until it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from whimbrel.model.errors import WhimbrelError
from whimbrel.model.node import Endpoint
from whimbrel.wire.calls import AbortIncoming, AwaitIncoming, Fate
from whimbrel.wire.rpc import Peer

ANSWER_TIMEOUT_S = 5.0
PAUSE_S = 0.2


async def ask_until_answered(
    destination: Endpoint, question: AbortIncoming | AwaitIncoming, waiting: Callable[[str], None]
) -> Fate:
    """An answer that is no answer (an error) will not do. Each time on a new connection: one that was under way when
    the link died is retried by the kernel ever more rarely. `waiting` is told why there is no answer yet."""
    while True:
        try:
            async with Peer(destination.name, destination.host, destination.port) as peer:
                fate: Fate = await peer.call(question, timeout_s=ANSWER_TIMEOUT_S)
                return fate
        except WhimbrelError as error:
            waiting(f"waiting for the destination's word: {error}")
            await asyncio.sleep(PAUSE_S)


def lost_at(destination: str, source: str) -> str:
    """What a user must know when a service was lost after the commit."""
    return (
        f"the service was lost on {destination} before all of its pages were in place: the receiving process or the "
        f"machine failed; it runs on at {source} as it was at the freeze: what it did since is lost, and connections "
        "that carried data since may break"
    )
