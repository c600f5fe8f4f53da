"""Orders go to the user itself, in the answers to its reports: the lab's radio and whoever else obeys them.

An answer may be lost, so an order is repeated in each one until it is carried out or too old. It has an id: a user
that hears it twice is handed over once.
"""

from __future__ import annotations

import time

from msgspec.structs import replace

from whimbrel.controller.handovers.port import HandoverPort, Settings, Tell
from whimbrel.model.errors import BadInput
from whimbrel.model.radio import HandoverOrder, Orders

REPEAT_S = 3.0
"""So long after its time an order is still given."""
MOST_AHEAD_S = 120.0
"""An order's time is on the user's clock, which may be any; none is given longer before its time than this."""


class Answers:
    def __init__(self, tell: Tell, settings: Settings) -> None:
        """Raises BadInput for any setting: there is none."""
        if settings:
            raise BadInput(f"[planner.handover_settings] {next(iter(settings))}: the port `answers` has no settings")
        self._waiting: dict[str, dict[str, tuple[HandoverOrder, float]]] = {}

    async def start(self) -> None:
        pass

    def order(self, order: HandoverOrder) -> None:
        until_s = time.monotonic() + min(MOST_AHEAD_S, max(0.0, order.at_unix_s - time.time())) + REPEAT_S
        self._waiting.setdefault(order.user, {})[order.id] = (order, until_s)

    def withdraw(self, order: HandoverOrder) -> None:
        """By an order with the same id to where the user is: such a one is carried out by doing nothing."""
        self.order(replace(order, at_unix_s=0.0))

    def answer(self, user: str) -> Orders:
        return Orders(orders=self.orders_of(user))

    def orders_of(self, user: str) -> tuple[HandoverOrder, ...]:
        """Those that are not too old."""
        waiting = self._waiting.get(user)
        if not waiting:
            return ()
        now_s = time.monotonic()
        for name, (_, until_s) in list(waiting.items()):
            if until_s < now_s:
                del waiting[name]
        if not waiting:
            del self._waiting[user]
        return tuple(order for order, _ in waiting.values())

    async def close(self) -> None:
        self._waiting.clear()


HANDOVERS = HandoverPort(
    name="answers", summary="orders in the answers to users' reports (the lab's radio obeys them)", make=Answers
)
