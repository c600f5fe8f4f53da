"""Orders go to the user itself, in the answers to its reports: the lab's radio and whoever else obeys them.

An answer may be lost, so an order is repeated in each one until it is carried out or too old. It has an id: a user
that hears it twice is handed over once.
"""

from __future__ import annotations

import time

from msgspec.structs import replace

from whimbrel.controller.handovers.port import HandoverPort, Tell
from whimbrel.model.radio import HandoverOrder, Orders

REPEAT_S = 3.0
"""So long after its time an order is still given."""


class Answers:
    def __init__(self, tell: Tell) -> None:
        self._waiting: dict[str, dict[str, tuple[HandoverOrder, float]]] = {}

    def order(self, order: HandoverOrder) -> None:
        until_s = time.time() + max(0.0, order.at_unix_s - time.time()) + REPEAT_S
        self._waiting.setdefault(order.user, {})[order.id] = (order, until_s)

    def withdraw(self, order: HandoverOrder) -> None:
        """By an order with the same id to where the user is: such a one is carried out by doing nothing."""
        self.order(replace(order, at_unix_s=0.0))

    def answer(self, user: str) -> Orders:
        waiting = self._waiting.get(user)
        if not waiting:
            return Orders()
        now_s = time.time()
        for name, (_, until_s) in list(waiting.items()):
            if until_s < now_s:
                del waiting[name]
        if not waiting:
            del self._waiting[user]
        return Orders(orders=tuple(order for order, _ in waiting.values()))

    async def close(self) -> None:
        self._waiting.clear()


HANDOVERS = HandoverPort(
    name="answers", summary="orders in the answers to users' reports (the lab's radio obeys them)", make=Answers
)
