"""Eq. (5), learnt: what it takes from a history, how near it comes, and what it does not take."""

from __future__ import annotations

import random

import msgspec
import pytest

from whimbrel.model.edge import Sizes
from whimbrel.model.history import Form, Measured
from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Round
from whimbrel.plan.downtime import (
    UNKNOWN,
    Point,
    carried_bps,
    fit,
    learn,
    measured_of,
    predict,
    prediction_error,
    prediction_errors,
    sift,
    usual_strategy,
)

POWERS = {"a": 1000.0, "b": 2000.0, "c": 1500.0}
PSI = {"a": 1.0e-4, "b": 3.0e-4, "c": 2.0e-4}
RHO = {"a": 2.0e-4, "b": 1.0e-4, "c": 5.0e-5}
FIXED = 25.0


def migration(
    source: str, destination: str, memory: float, *, form: Form, noise: float = 0.0, rng: random.Random
) -> Measured:
    """One that follows eq. (5), each part off by up to `noise`."""
    sizes = Sizes(image_bytes=memory * 2, checkpoint_bytes=memory, delta_bytes=memory / 50)
    paper = form is Form.PAPER
    restored = 2 * memory + memory + memory / 50 if paper else memory
    fixed = 0.0 if paper else FIXED
    parts = (
        fixed + PSI[source] * (2 * memory if paper else memory) / POWERS[source],
        sizes.delta_bytes * 8e3 / 1e9,
        fixed + RHO[destination] * restored / POWERS[destination],
    )
    checkpoint_ms, transfer_ms, restore_ms = (part * rng.lognormvariate(0, noise) for part in parts)
    return Measured(
        service="x", source=source, destination=destination, sizes=sizes, bandwidth_bps=1e9,
        checkpoint_ms=checkpoint_ms, transfer_ms=transfer_ms, restore_ms=restore_ms, form=form,
    )  # fmt: skip


def history(count: int, *, form: Form, noise: float, seed: int = 0) -> list[Measured]:
    rng = random.Random(seed)
    names = sorted(POWERS)
    found = []
    for _ in range(count):
        source, destination = rng.sample(names, 2)
        found.append(migration(source, destination, rng.choice([5e7, 2e8, 4e8, 1e9]), form=form, noise=noise, rng=rng))
    return found


@pytest.mark.parametrize("form", list(Form))
def test_psi_and_rho_are_found(form: Form) -> None:
    speeds, complaints = learn(history(60, form=form, noise=0.0), POWERS, form)
    assert complaints == ()
    for speed in speeds:
        assert speed.psi == pytest.approx(PSI[speed.server], rel=1e-6)
        assert speed.rho == pytest.approx(RHO[speed.server], rel=1e-6)
        assert speed.checkpoint_fixed_ms == pytest.approx(0.0 if form is Form.PAPER else FIXED, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", list(Form))
def test_within_20_percent_after_five_migrations_per_server(form: Form, seed: int) -> None:
    """Each part varies by 15 %, one migration in ten takes five times as long."""
    found = history(60, form=form, noise=0.15, seed=seed)
    found = [
        msgspec.structs.replace(one, checkpoint_ms=one.checkpoint_ms * 5, restore_ms=one.restore_ms * 5)
        if i % 10 == 3
        else one
        for i, one in enumerate(found)
    ]
    error = prediction_error(found, POWERS, form)
    assert error.predictions == 59
    assert error.after_five is not None
    assert error.after_five <= 0.20


def test_of_one_size_a_mean_is_learnt_not_a_line() -> None:
    rng = random.Random(1)
    found = [migration("a", "b", 2e8, form=Form.FREEZE, noise=0.05, rng=rng) for _ in range(6)]
    speeds = {speed.server: speed for speed in learn(found, POWERS)[0]}
    assert speeds["a"].psi == 0
    assert speeds["a"].checkpoint_fixed_ms == pytest.approx(FIXED + PSI["a"] * 2e8 / POWERS["a"], rel=0.15)


def test_one_who_has_none_gets_the_regions_and_nobody_knows_nothing() -> None:
    rng = random.Random(1)
    found = [migration("a", "b", 2e8, form=Form.FREEZE, rng=rng)]
    speeds = {speed.server: speed for speed in learn(found, POWERS)[0]}
    assert speeds["c"].samples == 0
    assert speeds["c"].checkpoint_fixed_ms == speeds["a"].checkpoint_fixed_ms > 0
    assert all(msgspec.structs.replace(speed, server="") == UNKNOWN for speed in learn([], POWERS)[0])
    assert prediction_error([], POWERS).median is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"checkpoint_ms": float("nan")}, "checkpoint_ms is nan"),
        ({"restore_ms": -1.0}, "restore_ms is -1"),
        ({"transfer_ms": 1e12}, "transfer_ms is 1e+12"),
        ({"bandwidth_bps": 0.0}, "bandwidth_bps is 0"),
        ({"sizes": Sizes(delta_bytes=float("inf"))}, "delta_bytes is inf"),
        ({"checkpoint_ms": 0.0, "transfer_ms": 0.0, "restore_ms": 0.0}, "it took no time"),
    ],
)
def test_what_cannot_be_a_measurement_is_named_and_left_out(change: dict[str, object], says: str) -> None:
    good = history(30, form=Form.FREEZE, noise=0.05)
    bad = msgspec.structs.replace(good[4], **change)
    kept, complaints = sift([*good, bad])
    assert kept == tuple(good)
    assert len(complaints) == 1
    assert says in complaints[0]
    assert f"from {bad.source} to {bad.destination}" in complaints[0]
    assert learn([*good, bad], POWERS)[0] == learn(good, POWERS)[0]


def test_a_line_has_no_part_below_zero() -> None:
    assert fit([Point(1.0, 1.0, 10.0), Point(10.0, 1.0, 1.0)], fixed=True) == (5.5, 0.0)
    assert fit([], fixed=True) is None


def test_a_service_far_larger_than_all_before_is_predicted_as_they_were() -> None:
    """From a counter of 12 to 20 MB on unequal servers no line leads to a service of 300 MB."""
    rng = random.Random(2)
    found = [
        msgspec.structs.replace(migration(*rng.sample(sorted(POWERS), 2), rng.uniform(1.2e7, 2e7),
                                          form=Form.FREEZE, rng=rng),
                                checkpoint_ms=rng.uniform(20, 60), restore_ms=rng.uniform(300, 400))
        for _ in range(20)
    ]  # fmt: skip
    speeds = {one.server: one for one in learn(found, POWERS)[0]}
    for server in POWERS:
        assert speeds[server].psi == speeds[server].rho == 0
        assert 300 <= speeds[server].restore_fixed_ms <= 400


def test_the_parts_of_a_prediction() -> None:
    speeds = {one.server: one for one in learn(history(60, form=Form.PAPER, noise=0.0), POWERS, Form.PAPER)[0]}
    sizes = Sizes(image_bytes=8e8, checkpoint_bytes=2e8, delta_bytes=8e6)
    predicted = predict(
        sizes,
        speeds["a"],
        speeds["b"],
        source_power=1000.0,
        destination_power=2000.0,
        bandwidth_bps=1e8,
        form=Form.PAPER,
    )
    assert predicted.checkpoint_ms == pytest.approx(PSI["a"] * 8e8 / 1000)
    assert predicted.transfer_ms == pytest.approx(8e6 * 8 / 1e8 * 1000)
    assert predicted.restore_ms == pytest.approx(RHO["b"] * 1.008e9 / 2000)
    assert predicted.pre_migration_ms == pytest.approx(predicted.checkpoint_ms + 2e8 * 8 / 1e8 * 1000)
    assert predicted.migration_ms == predicted.checkpoint_ms + predicted.transfer_ms + predicted.restore_ms


def test_round_trips_count_where_nothing_was_learnt() -> None:
    def migration_ms(rtt_ms: float, delta_bytes: float = 0.0) -> float:
        return predict(Sizes(delta_bytes=delta_bytes), UNKNOWN, UNKNOWN, source_power=1.0, destination_power=1.0,
                       bandwidth_bps=1e8, rtt_ms=rtt_ms).migration_ms  # fmt: skip

    assert migration_ms(100.0) == migration_ms(0.0) + 300
    assert migration_ms(100.0, 5e6) == migration_ms(0.0, 5e6) + 100, "pages cross beside two of them"


def test_what_is_learnt_over_one_path_holds_for_another() -> None:
    """A freeze of 60 ms takes 360 over 100 ms, and 960 over the 300 ms to the cloud."""
    near = Measured(
        service="s", source="a", destination="b", sizes=Sizes(checkpoint_bytes=1e7, delta_bytes=1e3), bandwidth_bps=1e8,
        checkpoint_ms=130.0, transfer_ms=0.0, restore_ms=230.0, rtt_ms=100.0,
    )  # fmt: skip
    left, came = learn([near] * 3, {"a": 1.0, "b": 1.0})[0]
    for rtt_ms, wanted_ms in ((100.0, 360.0), (300.0, 960.0), (0.0, 60.0)):
        predicted = predict(near.sizes, left, came, source_power=1.0, destination_power=1.0, bandwidth_bps=1e8,
                            rtt_ms=rtt_ms)  # fmt: skip
        assert predicted.migration_ms == pytest.approx(wanted_ms, abs=0.2)


def test_our_own_records_are_learnt_from() -> None:
    phases = [("rounds", 900), ("freeze", 60), ("freeze.hold", 2), ("freeze.stop", 1), ("freeze.dump", 17),
              ("freeze.pages", 6), ("freeze.copy", 4), ("freeze.restore", 25)]  # fmt: skip
    record = MigrationRecord(
        id="m", service="s", source="a", destination="b", strategy="hybrid", outcome=Outcome.DONE, freeze_ms=60,
        rss_bytes=200_000_000, phases=tuple(Phase(name=n, start_ms=0, duration_ms=d) for n, d in phases),
        rounds=(Round(n=1, dirty_pages=1, bytes_sent=100_000_000, duration_ms=800),
                Round(n=2, dirty_pages=1, bytes_sent=1_000_000, duration_ms=100)),
    )  # fmt: skip
    one = measured_of(record)
    assert one is not None
    assert (one.checkpoint_ms, one.transfer_ms, one.restore_ms) == (20, 8, 34)
    assert one.migration_ms == record.freeze_ms + 2, "from the hold on nobody hears the service"
    assert one.bandwidth_bps == pytest.approx(1e9)
    assert (one.sizes.checkpoint_bytes, one.sizes.delta_bytes) == (2e8, 1e6)
    assert measured_of(msgspec.structs.replace(record, outcome=Outcome.ROLLED_BACK)) is None


def test_what_crosses_beside_hold_and_restore_counts_once() -> None:
    """5 MB over 100 Mbit/s are 400 ms of this freeze, whichever of its steps they crossed beside."""
    phases = [("freeze", 700), ("freeze.hold", 200), ("freeze.stop", 5), ("freeze.dump", 30), ("freeze.pages", 6),
              ("freeze.restore", 450), ("freeze.beside", 200)]  # fmt: skip
    record = MigrationRecord(
        id="m", service="s", source="a", destination="b", strategy="hybrid", outcome=Outcome.DONE, freeze_ms=500,
        rss_bytes=200_000_000, phases=tuple(Phase(name=n, start_ms=0, duration_ms=d) for n, d in phases),
        rounds=(Round(n=1, dirty_pages=1, bytes_sent=100_000_000, duration_ms=8000),
                Round(n=2, dirty_pages=1, bytes_sent=5_000_000, duration_ms=500)),
    )  # fmt: skip
    one = measured_of(record)
    assert one is not None
    assert one.migration_ms == pytest.approx(700)
    waited = [Phase(name=n, start_ms=0, duration_ms=100 + d if n == "freeze.hold" else d) for n, d in phases]
    waited.append(Phase(name="freeze.quiet", start_ms=0, duration_ms=100))
    assert measured_of(msgspec.structs.replace(record, phases=tuple(waited))) == one, "a timed freeze does not wait"
    powers = {"a": 1.0, "b": 1.0}
    left, came = learn([one], powers)[0]
    predicted = predict(one.sizes, left, came, source_power=1.0, destination_power=1.0, bandwidth_bps=1e8)
    assert predicted.migration_ms == pytest.approx(700)


def test_what_a_link_carried_is_the_median_of_its_migrations() -> None:
    def record(number: int, mbits: float, source: str = "a", destination: str = "b", **round_: int) -> MigrationRecord:
        size = 12_500_000
        values = {"n": 1, "dirty_pages": 1, "bytes_sent": size, "duration_ms": size * 8e3 / (mbits * 1e6)} | round_
        return MigrationRecord(id=str(number), service="s", source=source, destination=destination, strategy="hybrid",
                               outcome=Outcome.ROLLED_BACK, rounds=(Round(**values),))  # fmt: skip

    ones = [record(1, 100.0), record(2, 30.0, "b", "a"), record(3, 90.0), record(4, 5.0, "a", "c")]
    tiny = record(5, 1.0, bytes_sent=1000, duration_ms=1)
    carried = carried_bps([*ones, tiny, record(6, 1.0, bytes_sent=0, duration_ms=0)])
    assert carried[frozenset("ab")] == pytest.approx(90e6)
    assert carried[frozenset("ac")] == pytest.approx(5e6)
    slow_start = record(7, 1.0, "b", "c", bytes_sent=1_200_000, duration_ms=1400)
    assert carried_bps([slow_start]) == {}, "a small service would make a large one seem to take minutes"
    frozen = msgspec.structs.replace(record(8, 2.0, "b", "c"), freeze_ms=6000.0)
    assert carried_bps([frozen]) == {}, "a freeze's round lasts from the hold to the restore"
    assert carried_bps([msgspec.structs.replace(record(9, 2.0, "b", "c"), strategy="shared")]) == {}, "over storage"
    old = [record(n, 1.0) for n in range(20)]
    new = [record(n, 50.0) for n in range(10)]
    assert carried_bps(old + new)[frozenset("ab")] == pytest.approx(50e6), "links change: the last ones count"


def mixed(count: int) -> list[Measured]:
    """Every second one by a strategy that freezes for two seconds longer."""
    found = history(count, form=Form.FREEZE, noise=0.0)
    return [
        msgspec.structs.replace(one, strategy="hybrid")
        if number % 2
        else msgspec.structs.replace(one, strategy="stop-and-copy", restore_ms=one.restore_ms + 2000.0)
        for number, one in enumerate(found)
    ]


def test_each_strategy_is_learnt_by_itself() -> None:
    found = mixed(120)
    fixed = {name: {one.server: one.restore_fixed_ms for one in learn(found, POWERS, strategy=name)[0]}
             for name in ("hybrid", "stop-and-copy")}  # fmt: skip
    for server in POWERS:
        assert fixed["hybrid"][server] == pytest.approx(FIXED, rel=0.05)
        assert fixed["stop-and-copy"][server] == pytest.approx(FIXED + 2000, rel=0.05)
    assert learn(found, POWERS, strategy="never-seen")[0] == learn(found, POWERS)[0], "then all together count"
    errors = prediction_errors(found, POWERS)
    assert errors.whole.after_five is not None
    assert errors.whole.after_five < 0.05
    assert set(errors.by_strategy) == {"hybrid", "stop-and-copy"}
    assert sum(one.predictions for one in errors.by_strategy.values()) == errors.whole.predictions == 119
    assert set(errors.by_server) == set(POWERS)


def test_another_servers_migrations_of_the_strategy_tell_more_than_its_own_of_others() -> None:
    found = [one for one in mixed(120) if one.strategy == "hybrid" or "c" in (one.source, one.destination)]
    found = [one for one in found if one.strategy != "hybrid" or "c" not in (one.source, one.destination)]
    (speed,) = [one for one in learn(found, POWERS, strategy="hybrid")[0] if one.server == "c"]
    assert speed.restore_fixed_ms < 100
    assert speed.samples == 0, "none of them is its own"


def test_what_auto_mostly_came_to_is_learnt_from() -> None:
    def record(strategy: str, asked: str) -> MigrationRecord:
        return MigrationRecord(id="m", service="s", source="a", destination="b", strategy=strategy, asked=asked,
                               outcome=Outcome.DONE)  # fmt: skip

    records = [record("hybrid", "auto"), record("hybrid", "auto"), record("post-copy", "auto")]
    records += [record("delta", "delta")] * 5
    assert usual_strategy(records, "auto") == "hybrid"
    assert usual_strategy(records, "tmpfs") == "tmpfs"
    assert usual_strategy([], "auto") == ""
