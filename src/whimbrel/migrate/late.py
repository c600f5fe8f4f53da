"""Post-copy at the destination: pages that come after the resume, and the ones that the program waits for."""

from __future__ import annotations

import contextlib
import threading
from typing import Protocol

from whimbrel.memory.lazy import LazyServer
from whimbrel.memory.ranges import EMPTY, Ranges, union
from whimbrel.memory.supply import Supply
from whimbrel.migrate.backlog import unpack
from whimbrel.migrate.intake import PageIntake
from whimbrel.migrate.pagechannel import Kind, PageChannel, PeerGone, RestoreOrder
from whimbrel.model.errors import StepFailed, WhimbrelError

AFTER_A_CUT_S = 60.0
"""A link that died without a word may come back, and the source tries all the time."""
AFTER_THE_END_S = 8.0
"""The source itself ended the connection: its agent is dead, or it met the end of a cut first and is at the door within
some 3 s (its pause, and a connection that is tried anew)."""


class Destination(Protocol):
    """What of the receiving process is needed here (see `receive.Receiver`)."""

    committed: bool
    intake: PageIntake
    lazy: LazyServer
    supplies: dict[int, Supply]

    def accept_again(self, within_s: float) -> PageChannel: ...


def later_than_restore(order: RestoreOrder) -> dict[int, Ranges]:
    """Byte ranges that are not here when the restore begins, by the pid in the container."""
    behind, beside = unpack(order.behind), unpack(order.beside)
    return {
        ns_pid: union(behind.get(ns_pid, EMPTY), beside.get(ns_pid, EMPTY)) for ns_pid in behind.keys() | beside.keys()
    }


class LatePages:
    """Pages that come while the restored program is about to run, or runs: a thread of its own reads the channel."""

    def __init__(self, receiver: Destination, channel: PageChannel) -> None:
        self._receiver = receiver
        self._channel = channel
        self._go = threading.Event()
        self._error: Exception | None = None
        self._whole = False
        self._thread = threading.Thread(target=self._read, name="late-pages", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self, ns_pid: int, page: int) -> None:
        """Somebody waits for a page. A link that is down just now is no matter: all is asked again over the next."""
        with contextlib.suppress(WhimbrelError):
            self._channel.send(Kind.REQUEST, ns_pid, page.to_bytes(8, "little"))

    def wait_for_go(self) -> None:
        """The source's word. Raises StepFailed with the reason when none comes."""
        self._go.wait()
        self.check()

    def check(self) -> None:
        """Raises what went wrong before the commit, if anything did."""
        error = self._error
        if isinstance(error, WhimbrelError) and not isinstance(error, PeerGone):
            raise error
        if error is not None:
            raise StepFailed(f"the source went away before the commit: {error}") from error

    def stop(self) -> None:
        """All pages are there: what happens to the channel from now on is no matter."""
        self._whole = True

    def _read(self) -> None:
        while not self._whole:
            try:
                self._read_one()
            except Exception as error:
                if self._whole:
                    return
                if not self._go.is_set():
                    self._error = error
                    self._go.set()
                    return
                if not self._link_again(AFTER_THE_END_S if isinstance(error, PeerGone) else AFTER_A_CUT_S):
                    return

    def _read_one(self) -> None:
        kind, number, ranges, size = self._channel.receive_header()
        if kind is Kind.PAGES:
            pages, slots = self._receiver.intake.take(self._channel, number, ranges, size, recent=False)
            supply = self._receiver.supplies.get(number)
            if supply is not None:
                self._receiver.lazy.arrived(supply, pages, slots)
        else:
            payload = self._channel.receive_payload(size)
            self._channel.check(kind, number, payload, Kind.GO)
            self._go.set()

    def _link_again(self, within_s: float) -> bool:
        """The link was cut after the commit: the source comes back, or the rest is lost."""
        try:
            self._channel.replace(self._receiver.accept_again(within_s))
        except (OSError, WhimbrelError):
            for supply in self._receiver.supplies.values():
                supply.give_up()
            self._receiver.lazy.given_up()
            return False
        for supply in self._receiver.supplies.values():
            supply.ask_again()
        return True
