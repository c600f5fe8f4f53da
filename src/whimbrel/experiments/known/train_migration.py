"""Paper `train`, Table II: checkpoint, copy and restore of stop-and-copy and of pre-copy, for three containers."""

from __future__ import annotations

from whimbrel.experiments.model import Cell, Drawing, Experiment, Figure, Link, Stack
from whimbrel.experiments.quantities import (
    FREEZE,
    OUTAGE_TCP,
    RESTORE,
    STREAMED_CHECKPOINT,
    STREAMED_COPY,
    renamed,
)

CONTAINERS = {"C1": "debian", "C2": "busybox", "C3": ""}
STRATEGIES = ("stop-and-copy", "pre-copy")
TABLE = Figure(
    key="table-2",
    of="Table II",
    title="Table II: downtime of migration tasks",
    cells=(
        *(
            Cell("video", strategy, system=system, label=container)
            for container, system in CONTAINERS.items()
            for strategy in STRATEGIES
        ),
        *(Cell("video", "hybrid", system=system, label=container) for container, system in CONTAINERS.items()),
    ),
    quantities=(STREAMED_CHECKPOINT, STREAMED_COPY, renamed(RESTORE, "restore"), FREEZE, OUTAGE_TCP),
    drawing=Drawing(stacks=(Stack("", ("checkpoint", "copy", "restore")),), bars=("outage",)),
    notes=(
        "C1 and C2 are system containers of LXC with an init, syslog and cron: Debian in the place of Ubuntu, busybox "
        "in the place of Alpine (whose programs are busybox too). C3 is an OCI application container (runc).",
        "All three serve the same video by nginx, as the paper's do. Its link is not given; ours has 1 Gbit/s.",
        "Checkpoint: until CRIU's images are written. Copy: the last pages and the images. Restore: until the first "
        "instruction at the destination. With pre-copy and hybrid the last pages cross while CRIU writes its images.",
    ),
)

EXPERIMENT = Experiment(
    name="train-migration",
    paper="train",
    summary="stop-and-copy against pre-copy, for system and application containers",
    figures=(TABLE,),
    link=Link(rate_bps=1e9),
    notes=("Dirty pages are found by write-protection (userfaultfd), where the paper's CRIU reads soft-dirty bits.",),
)
