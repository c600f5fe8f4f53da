"""How long a migration takes, eq. (5) of `coordinated`, learnt per server from the migrations that were.

    T_mig = T_chkpt + T_trans + T_restore
    T_chkpt = psi_s S / C_s        T_trans = S_delta-lambda / B_ss'        T_restore = rho_s' S / C_s'

In the paper's form S is the container's size (S_D, at the restore S_D + S_lambda + S_delta-lambda). Our own strategies
freeze once: there each part has a fixed share besides, and S is the service's memory (S_lambda). psi, rho and the fixed
shares are medians (Theil-Sen where a line is fitted), so that an outlier changes little; what cannot be a measurement
is named and left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median, mode
from typing import NamedTuple

import msgspec

from whimbrel.model.edge import MOST_BPS, MOST_BYTES, MOST_MS, Sizes, Speed
from whimbrel.model.history import Form, Measured, Predicted, PredictionError, PredictionErrors
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.numbers import wrong
from whimbrel.plan.convergence import Limits
from whimbrel.plan.strategies import AUTO

ENOUGH = 5
ALIKE = 3
"""So many migrations of one strategy tell more than all strategies' together."""
KEPT = 40
"""So many of a server's last migrations count: servers change."""
SPREAD = 3.0
"""A line is fitted only if the largest memory is this many times the smallest; else all is taken as fixed: the noise of
alike ones, drawn out to a service ten times as large, would be most of what is said of it. Not S / C_s: that servers
differ says nothing of sizes."""
UNKNOWN = Speed(
    server="",
    checkpoint_fixed_ms=Limits().fixed_freeze_ms / 2,
    psi=0.0,
    restore_fixed_ms=Limits().fixed_freeze_ms / 2,
    rho=0.0,
)
"""Before any migration: the fixed freeze that `plan.convergence` assumes."""
FREEZE_ROUND_TRIPS = 3
"""And so many round trips: the hold, the way there and back, the agreement. Pages cross beside the first and the last.
They are the path's, not the server's: what is learnt of a server is without them."""


def sift(history: Sequence[Measured]) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """The measurements that can be true, and a line for each of the others."""
    good, complaints = [], []
    for one in history:
        parts = (
            ("bandwidth_bps", one.bandwidth_bps, 1.0, MOST_BPS),
            ("checkpoint_ms", one.checkpoint_ms, 0.0, MOST_MS),
            ("transfer_ms", one.transfer_ms, 0.0, MOST_MS),
            ("restore_ms", one.restore_ms, 0.0, MOST_MS),
            ("rtt_ms", one.rtt_ms, 0.0, MOST_MS),
            ("image_bytes", one.sizes.image_bytes, 0.0, MOST_BYTES),
            ("checkpoint_bytes", one.sizes.checkpoint_bytes, 0.0, MOST_BYTES),
            ("delta_bytes", one.sizes.delta_bytes, 0.0, MOST_BYTES),
        )
        problems = [f"{name} {problem}" for name, value, low, high in parts if (problem := wrong(value, low, high))]
        if not problems and one.migration_ms <= 0:
            problems = ["it took no time"]
        if problems:
            where = f"migration of {one.service} from {one.source} to {one.destination}"
            complaints.append(f"{where} is not learnt from: {problems[0]}")
        else:
            good.append(one)
    return tuple(good), tuple(complaints)


def learn(
    history: Sequence[Measured], powers: Mapping[str, float], form: Form = Form.FREEZE, strategy: str = ""
) -> tuple[tuple[Speed, ...], tuple[str, ...]]:
    """psi, rho and the fixed shares of every server in `powers` (C_s by name), and what was left out and why.

    Strategies freeze for different things: with a `strategy` its own migrations count, on this server or else in the
    region, and all strategies' together only where there are not enough of them ("": all together). A server without
    migrations of its own gets the region's figures, and `UNKNOWN` if there is none at all.
    """
    good, complaints = sift(history)
    good = tuple(one for one in good if one.form is form and one.source in powers and one.destination in powers)
    return tuple(_speed(good, powers, form, strategy, server) for server in powers), complaints


def _speed(good: Sequence[Measured], powers: Mapping[str, float], form: Form, strategy: str, server: str) -> Speed:
    checkpoint, left = _fitted(good, powers, form, strategy, server, restores=False)
    restore, came = _fitted(good, powers, form, strategy, server, restores=True)
    if checkpoint is None or restore is None:
        return msgspec.structs.replace(UNKNOWN, server=server)
    return Speed(
        server=server,
        checkpoint_fixed_ms=checkpoint[0],
        psi=checkpoint[1],
        restore_fixed_ms=restore[0],
        rho=restore[1],
        samples=min(left, came),
    )


def _fitted(
    good: Sequence[Measured], powers: Mapping[str, float], form: Form, strategy: str, server: str, *, restores: bool
) -> tuple[tuple[float, float] | None, int]:
    """The nearest to the server and its strategy that is known, and how many migrations of the server are in it."""
    own = [one for one in good if (one.destination if restores else one.source) == server]
    alike = [one for one in good if one.strategy == strategy] if strategy else []
    own_alike = [one for one in own if one.strategy == strategy] if strategy else []
    choices = [own_alike if len(own_alike) >= ALIKE else [], alike if len(alike) >= ALIKE else [], own, list(good)]
    for number, found in enumerate(choices):
        last = found[-KEPT:]
        if last:
            points = [_point(one, powers, form, restores=restores) for one in last]
            return fit(points, fixed=form is Form.FREEZE), len(last) if number in (0, 2) else 0
    return None, 0


class Point(NamedTuple):
    """A part of a migration: S in bytes, C_s, and how long it took."""

    size_bytes: float
    power: float
    took_ms: float


def _point(one: Measured, powers: Mapping[str, float], form: Form, *, restores: bool) -> Point:
    rtt_ms = one.rtt_ms if form is Form.FREEZE else 0.0
    if restores:
        took_ms = max(0.0, one.restore_ms - _later_trips_ms(rtt_ms, one.transfer_ms))
        return Point(_restored_bytes(one.sizes, form), powers[one.destination], took_ms)
    return Point(_checkpointed_bytes(one.sizes, form), powers[one.source], max(0.0, one.checkpoint_ms - rtt_ms))


def fit(found: Sequence[Point], *, fixed: bool) -> tuple[float, float] | None:
    """(fixed part, slope) of times over S / C_s, robustly; None without a point. Not `fixed`: through the origin."""
    if not found:
        return None
    points = [(one.size_bytes / one.power, one.took_ms) for one in found]
    if not fixed:
        ratios = [time / size for size, time in points if size > 0]
        return (0.0, median(ratios)) if ratios else (median(time for _, time in points), 0.0)
    sizes = [size for size, _ in points]
    slope = 0.0
    memory_bytes = [one.size_bytes for one in found]
    if max(memory_bytes) > SPREAD * min(memory_bytes):
        apart = (max(sizes) - min(sizes)) / 10
        slopes = [(t2 - t1) / (s2 - s1) for (s1, t1), (s2, t2) in combinations(points, 2) if abs(s2 - s1) > apart]
        slope = max(0.0, median(slopes))
    return max(0.0, median(time - slope * size for size, time in points)), slope


def predict(
    sizes: Sizes,
    source: Speed,
    destination: Speed,
    *,
    source_power: float,
    destination_power: float,
    bandwidth_bps: float,
    rtt_ms: float = 0.0,
    form: Form = Form.FREEZE,
) -> Predicted:
    """T_pre-mig and T_mig of eq. (5), ms. `rtt_ms` between the two: our own strategies take round trips, of which the
    first counts with the checkpoint, the others with the restore."""
    checkpoint_ms = source.checkpoint_fixed_ms + source.psi * _checkpointed_bytes(sizes, form) / source_power
    restore_ms = destination.restore_fixed_ms + destination.rho * _restored_bytes(sizes, form) / destination_power
    transfer_ms = sizes.delta_bytes * 8e3 / bandwidth_bps
    hidden_ms = 0.0
    if form is Form.FREEZE:
        later_ms = _later_trips_ms(rtt_ms, transfer_ms)
        checkpoint_ms += rtt_ms
        restore_ms += later_ms
        hidden_ms = _later_trips_ms(rtt_ms, 0.0) - later_ms
    return Predicted(
        # ours copies memory while the service runs, and needs no checkpoint for it
        pre_migration_ms=sizes.checkpoint_bytes * 8e3 / bandwidth_bps + (checkpoint_ms if form is Form.PAPER else 0.0),
        checkpoint_ms=checkpoint_ms,
        transfer_ms=transfer_ms,
        restore_ms=restore_ms,
        hidden_ms=hidden_ms,
        samples=min(source.samples, destination.samples),
    )


def _later_trips_ms(rtt_ms: float, transfer_ms: float) -> float:
    """What of the round trips after the first the transfer beside them does not hide."""
    return max(0.0, (FREEZE_ROUND_TRIPS - 1) * rtt_ms - transfer_ms)


def prediction_error(
    history: Sequence[Measured], powers: Mapping[str, float], form: Form = Form.FREEZE
) -> PredictionError:
    """Each migration of the history (oldest first) predicted from those before it, and held against what it took."""
    return _error([each for _, each in _errors(sift(history)[0], powers, form)])


def prediction_errors(
    history: Sequence[Measured], powers: Mapping[str, float], form: Form = Form.FREEZE
) -> PredictionErrors:
    """The same, and of each strategy and each server by itself."""
    good, complaints = sift(history)
    found = _errors(good, powers, form)
    strategies = sorted({one.strategy for one, _ in found})
    servers = sorted({name for one, _ in found for name in (one.source, one.destination)})
    return PredictionErrors(
        whole=_error([each for _, each in found]),
        by_strategy={name: _error([each for one, each in found if one.strategy == name]) for name in strategies},
        by_server={
            name: _error([each for one, each in found if name in (one.source, one.destination)]) for name in servers
        },
        left_out=complaints,
    )


_Each = tuple[float, bool]
"""An error, and whether both servers had five migrations before."""


def _errors(history: Sequence[Measured], powers: Mapping[str, float], form: Form) -> list[tuple[Measured, _Each]]:
    good = [one for one in history if one.form is form and {one.source, one.destination} <= set(powers)]
    found = []
    for index in range(1, len(good)):
        one, before = good[index], good[:index]
        source, destination = (
            _speed(before, powers, form, one.strategy, name) for name in (one.source, one.destination)
        )
        predicted = predict(
            one.sizes,
            source,
            destination,
            source_power=powers[one.source],
            destination_power=powers[one.destination],
            bandwidth_bps=one.bandwidth_bps,
            rtt_ms=one.rtt_ms,
            form=form,
        )
        error = abs(predicted.migration_ms - one.migration_ms) / one.migration_ms
        enough = all(
            sum(name in (past.source, past.destination) for past in before) >= ENOUGH
            for name in (one.source, one.destination)
        )
        found.append((one, (error, enough)))
    return found


def _error(each: Sequence[_Each]) -> PredictionError:
    every, later = [error for error, _ in each], [error for error, enough in each if enough]
    return PredictionError(
        predictions=len(every), median=median(every) if every else None, after_five=median(later) if later else None
    )


def measured_of(
    record: MigrationRecord, *, image_bytes: float = 0.0, bandwidth_bps: float = 0.0, rtt_ms: float = 0.0
) -> Measured | None:
    """What the model learns from one of our own migrations; None if it did not come to its end or had no freeze.

    T_mig is hold and freeze: from the hold on nobody hears the service. Pages cross beside hold, dump and restore, so
    the transfer is what eq. (5) takes it for, S_delta-lambda / B; the checkpoint is hold, stop and dump as far as that
    leaves time for them; all else is the restore, the round trips of `rtt_ms` included. A wait for a moment without
    work is no part of it: a freeze that is timed does not wait. `bandwidth_bps`: what predictions take for the two
    servers' link; 0: what the fastest round carried.
    """
    took_ms = {phase.name: phase.duration_ms for phase in record.phases}
    if record.outcome is not Outcome.DONE or record.freeze_ms <= 0:
        return None
    waited_ms = took_ms.get("freeze.quiet", 0.0)
    away_ms = max(0.0, took_ms.get("freeze.hold", 0.0) - waited_ms) + record.freeze_ms
    rates = [one.bytes_sent * 8e3 / one.duration_ms for one in record.rounds if one.duration_ms > 0]
    bandwidth_bps = bandwidth_bps or max(rates, default=0.0)
    delta_bytes = float(record.rounds[-1].bytes_sent if record.rounds else record.rss_bytes)
    transfer_ms = min(away_ms, delta_bytes * 8e3 / bandwidth_bps) if bandwidth_bps > 0 else 0.0
    steps_ms = sum(took_ms.get(f"freeze.{part}", 0.0) for part in ("hold", "stop", "dump")) - waited_ms
    checkpoint_ms = min(away_ms - transfer_ms, steps_ms)
    return Measured(
        service=record.service,
        source=record.source,
        destination=record.destination,
        sizes=Sizes(
            image_bytes=image_bytes,
            checkpoint_bytes=float(record.rss_bytes),
            delta_bytes=delta_bytes,
        ),
        bandwidth_bps=bandwidth_bps,
        checkpoint_ms=checkpoint_ms,
        transfer_ms=transfer_ms,
        restore_ms=away_ms - checkpoint_ms - transfer_ms,
        strategy=record.strategy,
        rtt_ms=rtt_ms,
    )


def usual_strategy(records: Sequence[MigrationRecord], asked: str) -> str:
    """The strategy that is to be learnt from where `asked` is asked for: what that came to mostly, lately; "" where
    nobody knows. `records` oldest first."""
    if asked != AUTO:
        return asked
    came_to = [one.strategy for one in records if one.asked == AUTO and one.outcome is Outcome.DONE][-LAST_MOVES:]
    return mode(came_to) if came_to else ""


LEAST_ROUND_BYTES = float(8 << 20)
"""Less than that fits into buffers, or is over before a connection over a long path has come to its speed, and says
nothing of a link: by a counter's rounds a service of 150 MB seemed to need 182 s over 100 Mbit/s and 100 ms."""
LAST_MOVES = 10
SHARED = "shared"


def carried_bps(records: Sequence[MigrationRecord]) -> dict[frozenset[str], float]:
    """B_ss' as it was: what rounds carried between two nodes, of both ways the median of the last migrations. `records`
    oldest first. A pair without a round of any size is not named. The round of a freeze lasts from the hold to the
    restore, whatever the link; and what crosses over storage goes another way."""
    found: dict[frozenset[str], list[float]] = {}
    for record in records:
        ahead = record.rounds[:-1] if record.freeze_ms > 0 else record.rounds
        rounds = [one for one in ahead if one.bytes_sent >= LEAST_ROUND_BYTES and one.duration_ms > 0]
        if rounds and record.source != record.destination and record.strategy != SHARED:
            rate_bps = sum(one.bytes_sent for one in rounds) * 8e3 / sum(one.duration_ms for one in rounds)
            if not wrong(rate_bps, 1.0, MOST_BPS):
                found.setdefault(frozenset((record.source, record.destination)), []).append(rate_bps)
    return {pair: median(rates[-LAST_MOVES:]) for pair, rates in found.items()}


def _checkpointed_bytes(sizes: Sizes, form: Form) -> float:
    return sizes.image_bytes if form is Form.PAPER else sizes.checkpoint_bytes


def _restored_bytes(sizes: Sizes, form: Form) -> float:
    if form is Form.PAPER:
        return sizes.image_bytes + sizes.checkpoint_bytes + sizes.delta_bytes
    return sizes.checkpoint_bytes
