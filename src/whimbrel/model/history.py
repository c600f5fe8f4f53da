"""A migration that was, as the downtime model learns from it, and what it said before against what was after."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from whimbrel.model.edge import Sizes


class Form(StrEnum):
    """Which sizes the parts of a migration follow."""

    PAPER = "paper"
    """Eq. (5): the checkpoint follows the container's size, the restore all of its sizes; nothing is fixed."""
    FREEZE = "freeze"
    """Our own strategies: a fixed part, and one that follows the service's memory; only the delta crosses."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One migration's times, as they were reported: nothing is checked here (`plan.downtime.sift` does).
    `strategy` "": not known; `rtt_ms` between the two servers, 0 likewise."""

    service: str
    source: str
    destination: str
    sizes: Sizes
    bandwidth_bps: float
    checkpoint_ms: float
    transfer_ms: float
    restore_ms: float
    form: Form = Form.FREEZE
    strategy: str = ""
    rtt_ms: float = 0.0

    @property
    def migration_ms(self) -> float:
        """T_mig of (5)."""
        return self.checkpoint_ms + self.transfer_ms + self.restore_ms


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """Eq. (5): T_pre-mig = checkpoint + the whole checkpoint's transfer; T_mig = checkpoint + delta's transfer +
    restore. `hidden_ms`: of the round trips, what passes beside the transfer. `samples`: from how many migrations of
    the two servers, the fewer of both."""

    pre_migration_ms: float
    checkpoint_ms: float
    transfer_ms: float
    restore_ms: float
    hidden_ms: float = 0.0
    samples: int = 0

    @property
    def migration_ms(self) -> float:
        return self.checkpoint_ms + self.transfer_ms + self.restore_ms

    @property
    def least_ms(self) -> float:
        """Where pages may follow the resume: T_mig without any that crosses in the freeze."""
        return self.checkpoint_ms + self.restore_ms + self.hidden_ms


class PredictionError(msgspec.Struct, frozen=True, kw_only=True):
    """|predicted - measured| / measured of T_mig, each predicted from what was before it. `after_five` counts only
    those whose two servers had five migrations behind them; null where there was none."""

    predictions: int
    median: float | None
    after_five: float | None


class PredictionErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Of all migrations that are remembered, of each strategy's and of each server's; `left_out`: what was not learnt
    from, and why."""

    whole: PredictionError
    by_strategy: dict[str, PredictionError] = {}
    by_server: dict[str, PredictionError] = {}
    left_out: tuple[str, ...] = ()
