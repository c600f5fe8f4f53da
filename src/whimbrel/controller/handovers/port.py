"""What the planner asks of a radio access network, and what it is told by it. The lab's radio stands behind `answers`;
a network's API is another file here, or a plug-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from whimbrel.model.radio import HandoverOrder, Orders, UserEvent

Tell = Callable[[UserEvent], None]
"""For events that do not come from the user itself: reports and handovers, as the network knows them."""

Settings = Mapping[str, Any]
"""The section [planner.handover_settings] of the controller's configuration."""


class Handovers(Protocol):
    """Nothing here blocks; all but the making is called in the controller's event loop. That a handover took place is
    told as a `HandoverRecord` that bears the order's id, by `Tell` or by the user itself."""

    async def start(self) -> None:
        """The controller runs: from now on `Tell` may be called."""

    def order(self, order: HandoverOrder) -> None:
        """Hand a user over; an order with the id of an earlier one that was not carried out replaces it."""

    def withdraw(self, order: HandoverOrder) -> None:
        """Should it not have been carried out yet, it is not to be."""

    def answer(self, user: str) -> Orders:
        """What the user is told when it reports."""

    async def close(self) -> None: ...


@dataclass(frozen=True)
class HandoverPort:
    """`make` is called once, before the controller starts. It raises BadInput for settings that it does not
    understand."""

    name: str
    summary: str
    make: Callable[[Tell, Settings], Handovers]
