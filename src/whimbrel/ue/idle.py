"""A radio that moves nothing: handovers take their time, and that is all. For trying a path and a rule without a
lab."""

from __future__ import annotations

import time

from whimbrel.ran.port import HandedOver


class IdleRadio:
    """The port `ran.port.Radio`."""

    def __init__(self, interruption_ms: float) -> None:
        self._interruption_ms = interruption_ms
        self._at: dict[str, str] = {}

    def attach(self, user: str, target: str) -> None:
        self._at[user] = target

    def detach(self, user: str) -> None:
        self._at.pop(user, None)

    def hand_over(self, user: str, target: str) -> HandedOver:
        source = self._at.get(user, "")
        begin_s, began_unix_s = time.monotonic(), time.time()
        time.sleep(self._interruption_ms / 1000)
        self._at[user] = target
        taken_ms = (time.monotonic() - begin_s) * 1000
        return HandedOver(user=user, source=source, target=target, interruption_ms=taken_ms, began_unix_s=began_unix_s)
