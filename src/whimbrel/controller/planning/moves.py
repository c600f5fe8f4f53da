"""Carries decisions out: the migration by the region's agents, the handover by the radio's port, each at its time.

A decision is in the database before anything begins. Should the controller die, the agents and the user finish what
they were told; the next one finds the decision, and writes down what became of it.

Its times are on the wall clock as it was when the decision began (`clock.Timeline`): all waits are by the time that
passes, whatever the clock is set to meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
from msgspec.structs import replace

from whimbrel.controller.handovers import Handovers
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.planning.book import PlanBook
from whimbrel.controller.planning.clock import Timeline
from whimbrel.controller.planning.decide import NOTICE_S
from whimbrel.controller.planning.due import Due
from whimbrel.controller.planning.outcome import concluded
from whimbrel.controller.planning.users import Users
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.errors import Conflict, WhimbrelError
from whimbrel.model.migration import MigrationRecord, MigrationRequest, Outcome
from whimbrel.model.radio import HandoverOrder, HandoverRecord
from whimbrel.plan.timing import MARGIN, Order

WAIT_STEP_S = 0.1
POSTPONED_S = 0.5
"""By so much a handover is put off whose memory is not across."""
REFRESH_S = 1.0
"""So long a round may take that keeps the destination fresh, and that has just begun."""
WORTH_S = 0.2
"""By so much sooner, and not less, a handover is brought forward."""
HANDOVER_TIMEOUT_S = 10.0
FORGOTTEN_S = 3.0
"""A forecast that is gone for so long will not come true."""

log = structlog.get_logger()
OnOver = Callable[[Decision], Awaitable[None]]
Decided = Callable[[Decision], None]
"""A decision is made, or over. Called in the event loop; it may not block."""


@dataclass
class Move:
    """One decision under way. The radio wants the handover at one time, and can wait until another. `ready`: the freeze
    can be when it is wanted; `frozen`: it has begun."""

    decision: Decision
    strategy: str
    wanted_handover_unix_s: float
    latest_handover_unix_s: float
    ready: bool = False
    frozen: bool = False
    ordered: bool = False
    cancelled: bool = False
    forgotten_since_s: float | None = None
    clock: Timeline = field(default_factory=Timeline, repr=False)
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Moves:
    """`running` by user: a user has one decision at a time. `on_over` is awaited before the user is free again."""

    def __init__(
        self, migrations: Migrations, users: Users, handovers: Handovers, book: PlanBook, on_over: OnOver
    ) -> None:
        self._migrations, self._users, self._handovers, self._book = migrations, users, handovers, book
        self._on_over = on_over
        self.running: dict[str, Move] = {}
        self.listeners: list[Decided] = []
        self.freeze_lags_s: Mapping[str, float] = {}  # by how much later than told a server freezes; "": any

    async def begin(
        self, decision: Decision, *, strategy: str, wanted_handover_unix_s: float, latest_handover_unix_s: float
    ) -> None:
        """Write it down and start. Raises Unreachable when the database is away: then nothing was begun."""
        if decision.user in self.running:
            raise Conflict(f"a decision for user {decision.user} is being carried out: wait for its end")
        move = Move(decision, strategy, wanted_handover_unix_s, latest_handover_unix_s)
        self.running[decision.user] = move
        try:
            await asyncio.to_thread(self._book.put_decision, decision)
        except BaseException:
            del self.running[decision.user]
            raise
        self._tell(decision)
        log.info("decided", id=decision.id, user=decision.user, reason=decision.reason)
        move.task = asyncio.create_task(self._carry_out(move), name=f"decision {decision.id}")

    def _tell(self, decision: Decision) -> None:
        for listener in self.listeners:
            listener(decision)

    async def resume(self) -> None:
        """Take up the decisions that were being carried out when the controller last stopped."""
        for decision in await asyncio.to_thread(self._book.unfinished):
            if decision.user in self.running:
                continue
            move = self.running[decision.user] = Move(decision, "", 0.0, 0.0)
            move.task = asyncio.create_task(self._settle(move), name=f"settle {decision.id}")

    async def close(self) -> None:
        """Stop watching; what runs goes on at the agents and the users."""
        tasks = [move.task for move in self.running.values() if move.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reconsider(self, user: str, due: Due | None) -> None:
        """The radio has changed its mind: what was begun for a handover that is not to come is undone, while it can
        be."""
        move = self.running.get(user)
        if move is None or not move.strategy or not move.decision.hands_over or move.cancelled or move.frozen:
            return
        if due is not None or move.clock.left_s(move.decision.handover_at_unix_s) < NOTICE_S:
            move.forgotten_since_s = None
            return
        now_s = time.monotonic()
        if move.forgotten_since_s is None:
            move.forgotten_since_s = now_s
        elif now_s - move.forgotten_since_s > FORGOTTEN_S:
            move.cancelled = True
            if move.ordered:
                self._handovers.withdraw(_stay(move.decision))
            if move.decision.migration:
                with contextlib.suppress(WhimbrelError):  # past its commit: it will have moved, and be planned anew
                    await self._migrations.cancel(move.decision.migration)

    # --- one decision ---------------------------------------------------------------------------------------
    async def _carry_out(self, move: Move) -> None:
        decision = move.decision
        parts: list[Awaitable[object]] = []
        migrates, hands_over = decision.migrates, decision.handover_at_unix_s > 0
        parts = [self._migrate(move) if migrates else _nothing(), self._hand_over(move) if hands_over else _nothing()]
        migrated, handed_over = await asyncio.gather(*parts, return_exceptions=True)
        for result in (migrated, handed_over):
            if isinstance(result, BaseException) and not isinstance(result, WhimbrelError):
                log.error("a decision met an error that nobody expected", id=decision.id, exc_info=result)
        record = migrated if isinstance(migrated, MigrationRecord) else None
        told = handed_over if isinstance(handed_over, HandoverRecord) else None
        if told is None and decision.hands_over and not hands_over:
            told = self._last_handover(move)
        errors = [str(one) for one in (migrated, handed_over) if isinstance(one, BaseException)]
        if record is not None and record.outcome is not Outcome.DONE:
            errors.append(f"the migration: {record.outcome}{': ' if record.error else ''}{record.error}")
        if told is not None and told.error:
            errors.append(f"the handover: {told.error}")
        await self._conclude(move, record, told, "; ".join(errors))

    async def _migrate(self, move: Move) -> MigrationRecord | None:
        try:
            return await self._migrated(move)
        finally:
            move.ready = True  # also when it came to nothing: the handover has nothing to wait for any more

    async def _migrated(self, move: Move) -> MigrationRecord | None:
        await move.clock.until(move.decision.pre_migration_at_unix_s)
        if move.cancelled:
            return None
        decision = move.decision
        together = decision.order == Order.COORDINATED and decision.handover_at_unix_s > 0
        request = MigrationRequest(
            id="", service=decision.service, destination=decision.server, strategy=move.strategy,
            handover_ms=decision.predicted.handover_ms * (1 - MARGIN) if together else 0.0,
        )  # fmt: skip
        lag_s = self._freeze_lag_s(decision)
        set_by_s = move.clock.set_by_s()
        record = await self._migrations.start(
            request,
            f"{_mark(decision)}: {decision.reason}",
            freeze_at_unix_s=decision.migration_at_unix_s - lag_s + set_by_s,
            by=(decision.from_base_station, decision.base_station),
        )
        move.decision = replace(move.decision, migration=record.id, freeze_ahead_ms=round(lag_s * 1e3, 3))
        await asyncio.to_thread(self._book.put_decision, move.decision)
        async for event in await self._migrations.events(record.id):
            if event.progress is not None:
                move.ready |= event.progress.ready
                if event.progress.phase in ("freeze", "switch", "finish"):
                    move.ready = move.frozen = True
            if event.record is not None:
                move.ready = move.frozen = True
                return replace(event.record, started_unix_s=event.record.started_unix_s - set_by_s)
        raise WhimbrelError("the controller stops")

    async def _hand_over(self, move: Move) -> HandoverRecord | None:
        decision = move.decision
        at_s = decision.handover_at_unix_s
        told = self._users.handed_over(decision.id)
        try:
            self._order(move, at_s)
            together = decision.order == Order.COORDINATED
            if decision.migrates and (together or decision.migration_at_unix_s - NOTICE_S <= at_s):
                at_s = await self._with_the_migration(move, at_s)
            async with asyncio.timeout(max(0.0, move.clock.left_s(at_s)) + HANDOVER_TIMEOUT_S):
                while not told.done():
                    if move.cancelled:
                        return None
                    await asyncio.wait([told], timeout=WAIT_STEP_S)
            return told.result()
        except TimeoutError:
            state = self._users.get(decision.user)
            if state is not None and state.report is not None and state.report.serving == decision.base_station:
                return None  # it is there, by whatever way it came
            raise WhimbrelError(f"user {decision.user} did not tell that it was handed over") from None
        finally:
            self._users.wait_no_more(decision.id)

    async def _with_the_migration(self, move: Move, at_s: float) -> float:
        """The handover waits for a memory that is not across yet, as long as it may, and the freeze with it; one that
        is across sooner than was thought brings both forward. Returns the handover's time. The freeze is told last:
        its way to the agent is always the same then."""
        clock = move.clock
        after_s = _freeze_after_s(move.decision)
        while True:
            at_s = await self._until_due(move, at_s, after_s)
            last = move.ready or move.cancelled or clock.left_s(move.latest_handover_unix_s) <= NOTICE_S
            if not last:
                at_s = clock.now_unix_s() + NOTICE_S + POSTPONED_S
                self._put_at(move, at_s, after_s)
            if move.decision.migration and not move.cancelled and not move.frozen:
                with contextlib.suppress(WhimbrelError):  # then the agent keeps to what it was told before
                    await self._tell_freeze(move, at_s + after_s)
            if last:
                return at_s

    async def _until_due(self, move: Move, at_s: float, after_s: float) -> float:
        """Until the last order for a handover at `at_s` must go out, or for a sooner one: of a memory that is across
        when the radio wants it already. Returns the handover's time."""
        clock = move.clock
        wanted_s = move.wanted_handover_unix_s
        while (left_s := clock.left_s(at_s - NOTICE_S)) > 0:
            sooner_s = max(clock.now_unix_s() + NOTICE_S + REFRESH_S, wanted_s)
            if move.ready and not move.cancelled and sooner_s < at_s - WORTH_S:
                self._put_at(move, sooner_s, after_s)
                at_s = sooner_s
                if move.decision.migration and not move.frozen:  # at once, or it begins another round
                    with contextlib.suppress(WhimbrelError):
                        await self._tell_freeze(move, at_s + after_s)
            else:
                await asyncio.sleep(min(left_s, WAIT_STEP_S))
        return at_s

    def _put_at(self, move: Move, at_s: float, after_s: float) -> None:
        move.decision = replace(move.decision, handover_at_unix_s=at_s, migration_at_unix_s=at_s + after_s)
        self._order(move, at_s)

    async def _tell_freeze(self, move: Move, at_s: float) -> None:
        """Where nobody knows yet how late this server freezes, the way there and back of the order tells."""
        migration, clock = move.decision.migration, move.clock
        lag_s, known = self._freeze_lag_s(move.decision), bool(self.freeze_lags_s)
        began_s = clock.now_unix_s()
        told = await self._migrations.freeze_in(migration, (clock.left_s(at_s) - lag_s) * 1e3)
        if told and not known:
            lag_s = (clock.now_unix_s() - began_s) / 2
            await self._migrations.freeze_in(migration, (clock.left_s(at_s) - lag_s) * 1e3)
        if told:
            move.decision = replace(move.decision, freeze_ahead_ms=round(lag_s * 1e3, 3))

    def _freeze_lag_s(self, decision: Decision) -> float:
        return self.freeze_lags_s.get(decision.from_server, self.freeze_lags_s.get("", 0.0))

    def _order(self, move: Move, at_unix_s: float) -> None:
        decision = move.decision
        move.ordered = True
        at_s = at_unix_s + self._ahead_s(move)
        self._handovers.order(
            HandoverOrder(user=decision.user, target=decision.base_station, at_unix_s=at_s, id=decision.id)
        )

    def _ahead_s(self, move: Move) -> float:
        """By how much the user's clock is ahead of the decision's."""
        state = self._users.get(move.decision.user)
        return state.clock_ahead_s(move.clock.now_unix_s()) if state is not None else 0.0

    def _last_handover(self, move: Move) -> HandoverRecord | None:
        """The one that the user made by itself, and that led to the decision."""
        decision, state = move.decision, self._users.get(move.decision.user)
        if state is None:
            return None
        made_s = decision.made_unix_s + self._ahead_s(move)
        found = [one for one in state.handovers if one.target == decision.base_station and one.unix_s > made_s - 30]
        return found[-1] if found else None

    # --- after a restart ------------------------------------------------------------------------------------
    async def _settle(self, move: Move) -> None:
        """What became of a decision that an earlier controller was carrying out."""
        decision = move.decision
        record, error, begun = None, "", True
        try:
            if decision.migrates:
                record = await self._migration_of(decision)
                begun = record is not None
                error = "" if begun else "the controller was restarted before the migration began"
            if record is not None and record.outcome is not Outcome.DONE:
                error = f"the migration: {record.outcome}{': ' if record.error else ''}{record.error}"
        except WhimbrelError as failure:
            error = str(failure)
        # what never began is no failure: it may be planned again at once
        await self._conclude(move, record, self._last_handover(move), error, cancelled=not begun)

    async def _migration_of(self, decision: Decision) -> MigrationRecord | None:
        """The end of it, found by id or, should the id not have been written down, by what it was begun for."""
        migration = decision.migration
        if not migration:
            newest = await self._migrations.newest(1, decision.service)
            if not newest or not newest[0].reason.startswith(_mark(decision)):
                return None
            migration = newest[0].id
        async for event in await self._migrations.events(migration):
            if event.record is not None:
                return event.record
        return None

    async def _conclude(
        self,
        move: Move,
        record: MigrationRecord | None,
        told: HandoverRecord | None,
        error: str,
        *,
        cancelled: bool = False,
    ) -> None:
        decision = move.decision
        final = concluded(
            decision, record, told, clock_ahead_s=self._ahead_s(move),
            error="the radio changed its mind" if move.cancelled else error, cancelled=move.cancelled or cancelled,
            now_unix_s=move.clock.now_unix_s(),
        )  # fmt: skip
        try:
            await self._on_over(final)
            await asyncio.to_thread(self._book.put_decision, final)
        except WhimbrelError as failure:
            log.error("cannot keep a decision", id=decision.id, error=str(failure))
        finally:
            self.running.pop(decision.user, None)
        self._tell(final)
        log.info("decision over", id=decision.id, state=final.state.value, error=final.error)


def failed(decision: Decision) -> bool:
    return decision.state is DecisionState.FAILED


def _freeze_after_s(decision: Decision) -> float:
    """From the handover's beginning: as it was decided; and no later than in its middle, where both are to come
    together, though the memory was thought to take longer than the handover can wait."""
    after_s = decision.migration_at_unix_s - decision.handover_at_unix_s
    if decision.order != Order.COORDINATED:
        return after_s
    return min(after_s, (decision.predicted.handover_ms - decision.predicted.migration_ms) / 2e3)


def _stay(decision: Decision) -> HandoverOrder:
    return HandoverOrder(user=decision.user, target=decision.from_base_station, id=decision.id)


def _mark(decision: Decision) -> str:
    """How the reason of its migration begins."""
    return f"decision {decision.id}"


async def _nothing() -> None:
    return None
