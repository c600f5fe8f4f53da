"""Paper `fast`: two containers, three ways to migrate them; Figures 4 to 7 and Table II."""

from __future__ import annotations

from whimbrel.experiments.model import By, Cell, Drawing, Experiment, Figure, Link, Promise, Row, Stack
from whimbrel.experiments.quantities import (
    FINISHED,
    FREEZE,
    LAST_PAGES,
    OUTAGE_TCP,
    RESTORE,
    STAGED_COPY,
    STAGED_DUMP,
    TOTAL,
    TOTAL_LESS_AHEAD,
    TOTAL_LESS_ROOT,
    round_part,
)
from whimbrel.experiments.rows import no_slower, shorter

RUNS = 10
ROOT_BYTES = {"blank": 350_000_000, "video": 590_000_000}  # Section IV: the containers' file systems
WORKLOADS = tuple(ROOT_BYTES)
THEIRS = ("tmpfs", "diskless", "shared")
OURS = ("hybrid", "auto")
WAYS = {
    "tmpfs": ("figure-4", "Figure 4", "dumps staged in tmpfs"),
    "diskless": ("figure-5", "Figure 5", "disk-less, through CRIU's page server"),
    "shared": ("figure-6", "Figure 6", "dumps on a shared file system"),
}

LINK = Link(rate_bps=1e9)
NOTES = (
    "Links have 1 Gbit/s both ways (a token bucket at both ends), as the paper's nodes have.",
    "Dirty pages are found by write-protection (userfaultfd), where the paper's CRIU reads soft-dirty bits.",
    "Downtime is the longest wait of a client's TCP request for its answer; the paper's is the sum of dump, copy and "
    "restore. Ours includes the way back to the client, and the gateway holds its packets meanwhile.",
    "The script does the same steps with rsync, CRIU and runc. Where CRIU cannot track memory it cannot dump ahead: "
    "then its one dump takes all pages, and it has no 1st and 2nd iteration.",
)
ITERATIONS = (
    round_part(1, "dump", "1st iteration: pre-dump"),
    round_part(1, "copy", "1st iteration: copy"),
    round_part(2, "dump", "2nd iteration: pre-dump"),
    round_part(2, "copy", "2nd iteration: copy"),
    STAGED_DUMP,
    STAGED_COPY,
    RESTORE,
    FREEZE,
    OUTAGE_TCP,
)
STACKS = (
    Stack("1st iteration", ("round.1.dump", "round.1.copy")),
    Stack("2nd iteration", ("round.2.dump", "round.2.copy")),
    Stack("final iteration", ("final.dump", "final.copy", "final.restore")),
)


def cell(workload: str, strategy: str, by: By = By.WHIMBREL) -> Cell:
    return Cell(workload, strategy, by=by, root_bytes=ROOT_BYTES[workload])


def script(strategy: str) -> tuple[Cell, ...]:
    return tuple(cell(workload, strategy, By.SCRIPT) for workload in WORKLOADS)


def cells(*strategies: str) -> tuple[Cell, ...]:
    return tuple(cell(workload, strategy) for strategy in strategies for workload in WORKLOADS)


def breakdown(strategy: str) -> Figure:
    """Figures 4 to 6: where the time goes, iteration by iteration."""
    key, of, way = WAYS[strategy]
    return Figure(
        key=key,
        of=of,
        title=f"{of}: iterative migration, {way}",
        cells=(*cells(strategy), *script(strategy)),
        quantities=ITERATIONS,
        drawing=Drawing(stacks=STACKS, bars=("outage",)),
    )


def is_theirs(row: Row) -> bool:
    return row.strategy in THEIRS


def as_fast(quantity: str, name: str) -> Promise:
    text = f"{name} no longer than that of the same steps by the script"
    return Promise(text, quantity, no_slower, is_theirs, least_n=RUNS, baseline=True)


def before(strategy: str, other: str) -> Promise:
    """The papers' order."""
    return Promise(
        f"total time of {strategy} shorter than that of {other}, as in the paper (medians)",
        "total",
        lambda _: None,
        lambda row: row.strategy == strategy,
        beside=other,
        holds_beside=shorter,
        least_n=RUNS,
    )


ALL = (*cells(*THEIRS, *OURS), *(each for strategy in THEIRS for each in script(strategy)))
DOWNTIMES = Figure(
    key="downtimes",
    of="Figures 4 to 6, downtimes",
    title="Downtimes of all ways, and of Whimbrel's own",
    cells=ALL,
    quantities=(OUTAGE_TCP,),
    drawing=Drawing(bars=("outage",), log=True),
    promises=(as_fast("outage", "downtime"),),
)
TOTALS = Figure(
    key="figure-7",
    of="Figure 7",
    title="Figure 7: total migration time",
    cells=ALL,
    quantities=(TOTAL, TOTAL_LESS_AHEAD, TOTAL_LESS_ROOT, FINISHED),
    drawing=Drawing(bars=("total",), log=True),
    notes=(
        "Roots have the paper's sizes, 350 and 590 MB: a system's files beside the service's own. As in the paper they "
        "cross with tmpfs and diskless, and stay where they are with shared. Of the service's image, "
        "1 MB of blank and about 100 MB of video, Whimbrel expects a copy at both nodes; the script copies it too.",
        "Where the script cannot dump ahead it is held against Whimbrel's total without its two dumps ahead, which "
        "shorten the downtime and not the total. In Whimbrel's are its checks before anything is touched.",
    ),
    promises=(
        as_fast("total_less_ahead", "total time of the steps that both take"),
        before("shared", "diskless"),
        before("shared", "tmpfs"),
        before("diskless", "tmpfs"),
    ),
)
PAGES = Figure(
    key="table-2",
    of="Table II",
    title="Table II: pages in the last dump",
    cells=ALL,
    quantities=(LAST_PAGES,),
    drawing=Drawing(bars=("last_pages",)),
    notes=("A page has 4 KiB. The paper's containers hold a whole system, ours the service alone.",),
)


def same_steps(cell: Cell) -> tuple[str, By] | None:
    return (cell.strategy, By.SCRIPT) if cell.by is By.WHIMBREL and cell.strategy in THEIRS else None


EXPERIMENT = Experiment(
    name="fast",
    paper="fast",
    summary="blank and video containers over tmpfs, disk-less and shared storage",
    figures=(*(breakdown(strategy) for strategy in THEIRS), DOWNTIMES, TOTALS, PAGES),
    link=LINK,
    notes=NOTES,
    runs=RUNS,
    quick_workloads=("blank",),
    baseline=same_steps,
    baseline_label="script",
)
