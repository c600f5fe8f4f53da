"""Figure 6 of `coordinated`: the delay of each request around a handover, and the times without service shaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from whimbrel.experiments.coordinated_facts import Gap, Request, Walk, excerpt
from whimbrel.experiments.picture import BLUE, DPI, INK, SKY, VERMILION, YELLOW

SHADES = {"handover": SKY, "migration": YELLOW}


def draw_walks(out: Path, path: Path, workloads: Sequence[str], planners: Sequence[str]) -> None:
    """One line of panels for each workload of which there is a walk in the folder, one panel for each planner."""
    walks = {(workload, planner): found for workload in workloads for planner in planners
             if (found := _walk(out / f"walk-{workload}-{planner}.json")) is not None}  # fmt: skip
    rows = [workload for workload in workloads if any(workload == key[0] for key in walks)]
    canvas = Canvas(figsize=(3.6 * len(planners), 2.8 * max(1, len(rows))), dpi=DPI, layout="constrained")
    for line, workload in enumerate(rows):
        for column, planner in enumerate(planners):
            axes = canvas.add_subplot(len(rows), len(planners), line * len(planners) + column + 1)
            axes.set_title(f"{workload}: {planner}", fontsize=9, color=INK)
            _panel(axes, walks.get((workload, planner)))
    canvas.suptitle("Figure 6: delay around a handover, times without service shaded", fontsize=11, fontweight="bold",
                    color=INK)  # fmt: skip
    FigureCanvasAgg(canvas)
    canvas.savefig(path, metadata={"Software": None})


def _walk(path: Path) -> Walk | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Walk)
    except (OSError, msgspec.DecodeError):
        return None


def _panel(axes: Axes, walk: Walk | None) -> None:
    if walk is None or not walk.handovers:
        axes.text(0.5, 0.5, "no handover", transform=axes.transAxes, ha="center", fontsize=8)
        return
    requests, gaps = excerpt(walk, walk.handovers[len(walk.handovers) // 2])
    begin = min([*(one.sent_unix_s for one in requests), *(gap.begins_unix_s for gap in gaps)])
    _shade(axes, gaps, begin)
    _points(axes, requests, begin)
    axes.set_xlabel("s", fontsize=8)
    axes.set_ylabel("ms", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _shade(axes: Axes, gaps: Sequence[Gap], begin: float) -> None:
    for gap in gaps:
        left = gap.begins_unix_s - begin
        axes.axvspan(left, left + gap.lasts_s, color=SHADES[gap.kind], alpha=0.55, linewidth=0, label=gap.kind)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.legend(once.values(), once.keys(), fontsize=7, frameon=False, loc="upper right")


def _points(axes: Axes, requests: Sequence[Request], begin: float) -> None:
    answered = [one for one in requests if one.delay_ms is not None]
    at = [one.sent_unix_s - begin for one in answered]
    axes.plot(at, [one.delay_ms or 0.0 for one in answered], ".", markersize=2, color=BLUE)
    if any(one.processing_ms for one in answered):
        axes.plot(at, [one.processing_ms for one in answered], ".", markersize=2, color=VERMILION)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0)
