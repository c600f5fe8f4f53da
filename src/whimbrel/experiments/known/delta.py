"""Paper `coordinated`, Table I: how much smaller is the checkpoint of the migration, after one ahead of it?"""

from __future__ import annotations

from whimbrel.experiments.model import Cell, Drawing, Experiment, Figure, Link, Promise
from whimbrel.experiments.quantities import (
    IMAGE,
    MIGRATION,
    MIGRATION_PAGES,
    OUTAGE_TCP,
    PRE_MIGRATION,
    PRE_MIGRATION_SENT,
    REDUCTION,
    REQUESTS,
    SHARE,
    SHARE_LESS_KEPT,
)

RUNS = 5
MOST_PERCENT = 5.0
WORK_S = {"simple": 1.5, "face": 10.0, "objects": 30.0}
"""Until a session's pictures fill the memory that is set aside for them: the paper's services are in full use."""

TABLE = Figure(
    key="table-1",
    of="Table I",
    title="Table I: checkpoint sizes with delta checkpoints",
    cells=tuple(Cell(workload, "delta", work_s=work_s) for workload, work_s in WORK_S.items()),
    quantities=(
        IMAGE,
        PRE_MIGRATION,
        PRE_MIGRATION_SENT,
        MIGRATION,
        MIGRATION_PAGES,
        REDUCTION,
        SHARE,
        SHARE_LESS_KEPT,
        REQUESTS,
        OUTAGE_TCP,
    ),
    drawing=Drawing(bars=("pre_migration", "migration", "share"), log=True),
    notes=(
        "Face and objects are the paper's Openface and Yolo: recognition with other, smaller networks.",
        "Checkpoint of pre-migration: all pages that the processes have, 4 KiB each. Checkpoint of migration: all that "
        "crosses in the freeze, pages and CRIU's images. The client's requests go on in between, for as long as the "
        "pre-migration takes over the paper's link.",
        "The paper's checkpoints of pre-migration are 196.8 MB (Openface) and 584.8 MB (Yolo). Our networks are "
        "smaller: most of face is the model of 68 landmarks, which Openface uses, too; objects keeps up to 450 MB of "
        "its session's latest pictures. These hardly change, so the share without them is told too.",
    ),
    promises=(
        Promise(
            f"at most {MOST_PERCENT:g} % of the full checkpoint crosses in the migration",
            "share",
            lambda row: None if row.ours is None else row.ours <= MOST_PERCENT,
            least_n=RUNS,
        ),
    ),
)

EXPERIMENT = Experiment(
    name="delta",
    paper="coordinated",
    summary="delta checkpoints of simple, face and objects",
    figures=(TABLE,),
    link=Link(rate_bps=100e6),
    image_size=True,
    runs=RUNS,
    quick_workloads=("simple",),
    notes=(
        "Links have 100 Mbit/s both ways, as the paper's between neighbouring edge servers; its 50 ms of delay are not "
        "made: they change no size.",
    ),
)
