"""What the migrations and decisions that were teach the planner. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high

from whimbrel.controller.planning.monitor import links_of
from whimbrel.controller.planning.outcome import USUAL_START_S, freeze_lags_s, start_lag_s
from whimbrel.controller.views import NodeView
from whimbrel.model.decision import Decision
from whimbrel.model.edge import Link, Speed
from whimbrel.model.history import Measured, PredictionErrors
from whimbrel.model.migration import MigrationRecord
from whimbrel.plan.ahead import preparation_of
from whimbrel.plan.downtime import carried_bps, learn, measured_of, prediction_errors, usual_strategy

LAST_RECORDS = 20


@dataclass(frozen=True)
class Experience:
    """`records` oldest first; `powers` (C_s) of the servers as they are now; `carried_bps` by pair of nodes;
    `complaints`: of what cannot be a measurement."""

    records: tuple[MigrationRecord, ...] = ()
    history: tuple[Measured, ...] = ()
    powers: Mapping[str, float] = field(default_factory=dict)
    carried_bps: Mapping[frozenset[str], float] = field(default_factory=dict)
    speeds: tuple[Speed, ...] = ()
    start_lag_s: float = USUAL_START_S
    freeze_lags_s: Mapping[str, float] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()

    def preparation_ms(self, source: str, destination: str, rtt_ms: float) -> float:
        """From the decision until the service could freeze."""
        return preparation_of(self.records, source, destination, rtt_ms) + self.start_lag_s * 1e3

    def left_bytes(self, service: str) -> float | None:
        """What was left for the freeze the last times that this service moved; None for one that never did."""
        sizes = [one.sizes.delta_bytes for record in self.records
                 if record.service == service and (one := measured_of(record)) is not None]  # fmt: skip
        return median_high(sizes[-LAST_RECORDS:]) if sizes else None

    def moved_bytes(self, service: str) -> float:
        """The most of its image and files that ever crossed."""
        return max((float(one.image_bytes + one.file_bytes) for one in self.records if one.service == service),
                   default=0.0)  # fmt: skip

    def prediction_errors(self) -> PredictionErrors:
        """How far predictions of T_mig were off: each migration that is remembered, from those before it."""
        return prediction_errors(self.history, self.powers)


def experience(
    records: Sequence[MigrationRecord],
    decisions: Sequence[Decision],
    powers: Mapping[str, float],
    nodes: Sequence[NodeView] = (),
    *,
    strategy: str,
) -> Experience:
    """`records` and `decisions` oldest first; `strategy`: what is asked for; `nodes` with the paths between them."""
    carried = carried_bps(records)
    links = {frozenset((link.a, link.b)): link for link in links_of(nodes, carried)}
    history = tuple(one for record in records if (one := _measured(record, links)) is not None)
    speeds, complaints = learn(history, powers, strategy=usual_strategy(records, strategy))
    return Experience(
        records=tuple(records),
        history=history,
        powers=powers,
        carried_bps=carried,
        speeds=speeds,
        start_lag_s=start_lag_s(decisions),
        freeze_lags_s=freeze_lags_s(decisions),
        complaints=complaints,
    )


def _measured(record: MigrationRecord, links: Mapping[frozenset[str], Link]) -> Measured | None:
    """By the link as predictions take it: what is off in that is then learnt with the rest."""
    link = links.get(frozenset((record.source, record.destination)))
    return measured_of(record) if link is None else measured_of(
        record, bandwidth_bps=link.bandwidth_bps, rtt_ms=link.rtt_ms
    )  # fmt: skip
