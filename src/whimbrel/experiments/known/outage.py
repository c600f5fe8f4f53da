"""Whimbrel's own promise: what a client notices of a migration, for all the papers' services."""

from __future__ import annotations

from whimbrel.experiments.model import By, Cell, Drawing, Experiment, Figure, Link, Promise, Row
from whimbrel.experiments.quantities import (
    DAMAGED,
    FREEZE,
    LOST,
    OUTAGE_TCP,
    RESETS,
    TOTAL,
    WRITE_RATE,
)

MOST_MS = 100.0
MOST_OF_TMPFS = 1 / 5
WORKLOADS = ("blank", "simple", "video", "redis", "face", "objects")
OURS = ("hybrid", "auto")
REFERENCE = "tmpfs"
LOADED = "redis"
RUNS = 10
MOVES = {LOADED: 2}  # of each instance: with ten repetitions 20 migrations under load
LEAST_N, LOADED_N = 10, 20  # what ten repetitions make of them
WRITES_PER_S = 5000.0
LEAST_WRITES_PER_S = 0.9 * WRITES_PER_S


def cells(*strategies: str) -> tuple[Cell, ...]:
    return tuple(
        Cell(workload, strategy, moves=MOVES.get(workload, 1)) for workload in WORKLOADS for strategy in strategies
    )


SCRIPTS = tuple(Cell(workload, REFERENCE, by=By.SCRIPT) for workload in WORKLOADS)


def is_ours(row: Row) -> bool:
    return row.strategy in OURS


def is_loaded(row: Row) -> bool:
    return is_ours(row) and row.workload == LOADED


def is_other(row: Row) -> bool:
    return is_ours(row) and row.workload != LOADED


def none_of(quantity: str, text: str, of_loaded: str) -> tuple[Promise, Promise]:
    """Of all services, and of the one under load in as many migrations as the promise counts."""

    def none(row: Row) -> bool | None:
        return None if row.ours is None else row.ours == 0

    return (
        Promise(text, quantity, none, is_other, least_n=LEAST_N, counts=True),
        Promise(f"{LOADED}: {of_loaded} in {LOADED_N} migrations under load", quantity, none, is_loaded,
                least_n=LOADED_N, counts=True),
    )  # fmt: skip


def _fast_enough(row: Row) -> bool | None:
    return None if row.median is None else row.median >= LEAST_WRITES_PER_S


def _short(row: Row) -> bool | None:
    return None if row.median is None else row.median <= MOST_MS


def _much_shorter(row: Row) -> bool | None:
    if row.median is None or not row.baseline_median:
        return None
    return row.median / row.baseline_median <= MOST_OF_TMPFS


OUTAGES = Figure(
    key="outage",
    of="outage",
    title="What a client notices: outage of its TCP requests",
    cells=(*cells(*OURS, REFERENCE), *SCRIPTS),
    quantities=(OUTAGE_TCP, FREEZE, TOTAL),
    drawing=Drawing(bars=("outage",), limit=MOST_MS),
    promises=(
        Promise(
            f"median outage of hybrid and auto at most {MOST_MS:g} ms", "outage", _short, is_ours, least_n=LEAST_N
        ),
        Promise(
            "median outage of hybrid and auto at most 1/5 of tmpfs's, by the paper's own programs", "outage",
            _much_shorter, is_ours, least_n=LEAST_N, baseline=True,
        ),
    ),
)  # fmt: skip
STATE = Figure(
    key="state",
    of="state",
    title="What is lost, reset or damaged (sums over all migrations)",
    cells=cells(*OURS, REFERENCE),
    quantities=(LOST, RESETS, DAMAGED, WRITE_RATE),
    drawing=None,
    notes=(
        f"redis: 200 MB, {WRITES_PER_S:,.0f} writes a second are asked for, and told is how many of those sent "
        "while it moved were acknowledged; after each migration every acknowledged write is read back.",
        "The other clients check the service's counter, or each answer and each piece of the file.",
    ),
    promises=(
        *none_of("lost", "no request lost", "no acknowledged write lost"),
        *none_of("resets", "no connection reset", "no connection reset"),
        *none_of("damaged", "state whole after every migration", "state whole"),
        Promise(
            f"{LOADED}: at least {LEAST_WRITES_PER_S:,.0f} writes a second reached while it moves (median)",
            "write_rate", _fast_enough, is_loaded, least_n=LOADED_N,
        ),
    ),
)  # fmt: skip


def against_tmpfs(cell: Cell) -> tuple[str, By] | None:
    return (REFERENCE, By.SCRIPT) if cell.by is By.WHIMBREL else None


EXPERIMENT = Experiment(
    name="outage",
    paper="own",
    summary="hybrid and auto against tmpfs for six services, as their clients see it",
    figures=(OUTAGES, STATE),
    link=Link(rate_bps=1e9),
    runs=RUNS,
    quick_workloads=("blank", "simple"),
    baseline=against_tmpfs,
    baseline_label="script",
    notes=(
        "Script: the paper's own strategy as a shell script of rsync, CRIU and runc, dumps staged in tmpfs. Whimbrel's "
        "own tmpfs takes the same steps, but has CRIU and the destination's container waiting.",
        "Links have 1 Gbit/s both ways. Service, client, gateway and both agents share the machine's processors.",
        "Outage: the longest time from sending a request to its answer, minus the median of the quiet phase.",
    ),
)
