"""A figure as a PNG: bars with the 95 % confidence interval of their mean, ours beside the baseline's and the paper's.

The colours are those of Okabe and Ito, which people with any kind of colour vision tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from whimbrel.experiments import text
from whimbrel.experiments.model import By, Drawing, Experiment, Figure, Row

BLUE, SKY, GREEN, YELLOW, VERMILION, GREY = "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#999999"
PART_COLOURS = (SKY, YELLOW, GREEN, VERMILION)
DPI = 110
FONT = {"size": 9}
INK = "#333333"
SCALES = {"bytes": (1e6, "MB"), "ms": (1.0, "ms")}
PANELS_IN_A_ROW = 3
OURS = "Whimbrel"


@dataclass(frozen=True)
class Who:
    """Whose bar it is: how its mean and interval are read from a row, its colour and its name in the legend."""

    name: str
    colour: str
    mean: Callable[[Row], float | None]
    interval: Callable[[Row], float | None]


def everyone(experiment: Experiment, rows: Iterable[Row]) -> list[Who]:
    """Those who have anything to show."""
    people = (
        Who(OURS, BLUE, lambda row: row.ours, lambda row: row.ci95),
        Who(experiment.baseline_label, VERMILION, lambda row: row.baseline, lambda row: row.baseline_ci95),
        Who("paper", GREY, lambda row: row.paper, lambda row: row.paper_ci95),
    )
    known = list(rows)
    return [who for who in people if any(who.mean(row) is not None for row in known)]


def draw(experiment: Experiment, figure: Figure, drawing: Drawing, rows: Sequence[Row], path: Path) -> None:
    """Write the picture."""
    canvas = compose(experiment, figure, drawing, rows)
    FigureCanvasAgg(canvas)
    canvas.savefig(path, metadata={"Software": None})


def compose(experiment: Experiment, figure: Figure, drawing: Drawing, rows: Sequence[Row]) -> Canvas:
    """All panels of a figure. What neither we nor the paper measured is left out."""
    rows = [row for row in rows if row.ours is not None or row.paper is not None]
    panels: list[Callable[[Axes], None]] = []
    shares: list[float] = []
    if drawing.stacks:
        panels.append(lambda axes: _stacks(axes, experiment, drawing, rows))
        shares.append(1.9)
    bars = _bar_panels(experiment, drawing, [row for row in rows if row.by == By.WHIMBREL])
    panels += bars
    shares += [1.0] * len(bars)
    if not panels:  # nothing measured, and the paper has nothing either
        panels, shares = [_empty], [1.0]
    columns = len(panels) if drawing.stacks else min(len(panels), PANELS_IN_A_ROW)
    lines = -(-len(panels) // columns)
    canvas = Canvas(figsize=(max(5.0, 3.6 * sum(shares[:columns])), 3.9 * lines), dpi=DPI, layout="constrained")
    grid = canvas.add_gridspec(lines, columns, width_ratios=shares[:columns])
    for index, panel in enumerate(panels):
        axes = canvas.add_subplot(grid[index // columns, index % columns])
        panel(axes)
        _dress(axes)
    canvas.suptitle(figure.title, fontsize=11, fontweight="bold", color=INK)
    return canvas


def _empty(axes: Axes) -> None:
    axes.set_title("nothing measured", fontsize=9)


def _stacks(axes: Axes, experiment: Experiment, drawing: Drawing, rows: Sequence[Row]) -> None:
    """A group of bars for each container and strategy: one bar for each iteration and whoever measured it."""
    place, ticks, labels, groups = 0.0, [], [], []
    several = len({row.strategy for row in rows}) > 1
    parts = list(dict.fromkeys(part for stack in drawing.stacks for part in stack.parts))
    kinds = list(dict.fromkeys(_kind(part) for part in parts))
    colours = dict(zip(kinds, PART_COLOURS, strict=False))
    for workload, strategy in dict.fromkeys((row.workload, row.strategy) for row in rows):
        start = place
        of_group = [row for row in rows if (row.workload, row.strategy) == (workload, strategy)]
        for stack in drawing.stacks:
            of_stack = [row for row in of_group if row.quantity in stack.parts and row.by == By.WHIMBREL]
            for who in everyone(experiment, of_stack):
                bottom = 0.0
                for row in of_stack:
                    mean = who.mean(row)
                    if mean is None:
                        continue
                    axes.bar(
                        place, mean, 0.72, bottom, color=colours[_kind(row.quantity)], edgecolor=INK, linewidth=0.5,
                        yerr=who.interval(row), error_kw=_whiskers(),
                    )  # fmt: skip
                    bottom += mean
                _label(axes, place, bottom, text.value(bottom, of_stack[0].unit))
                ticks.append(place)
                labels.append(_bar_label(stack.label, who))
                place += 1
        if place == start:
            continue
        groups.append(((start + place - 1) / 2, f"{workload}, {strategy}" if several else workload))
        place += 0.7
    axes.set_xticks(ticks, labels, fontsize=8)
    for middle, name in groups:
        axes.annotate(name, (middle, 1.0), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", fontsize=9, fontweight="bold", color=INK)  # fmt: skip
    handles = [_swatch(axes, colours[kind], kind) for kind in kinds]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper left")
    axes.set_ylabel("ms")
    axes.set_ylim(top=(axes.get_ylim()[1] or 1.0) * 1.1)


def _bar_panels(experiment: Experiment, drawing: Drawing, rows: Sequence[Row]) -> list[Callable[[Axes], None]]:
    """One panel for each quantity; for each container too when several strategies are compared."""
    panels: list[Callable[[Axes], None]] = []
    for quantity in drawing.bars:
        found = [row for row in rows if row.quantity == quantity]
        if not found:
            continue
        if len({row.strategy for row in found}) == 1:
            panels.append(_bar_panel(experiment, drawing, found, found[0].label, lambda row: row.workload))
            continue
        for workload in dict.fromkeys(row.workload for row in found):
            of_it = [row for row in found if row.workload == workload]
            title = f"{workload}: {of_it[0].label}"
            panels.append(_bar_panel(experiment, drawing, of_it, title, lambda row: row.strategy))
    return panels


def _bar_panel(
    experiment: Experiment, drawing: Drawing, rows: Sequence[Row], title: str, name: Callable[[Row], str]
) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        people = everyone(experiment, rows)
        factor, unit = SCALES.get(rows[0].unit, (1.0, rows[0].unit))
        width = 0.8 / max(1, len(people))
        for index, who in enumerate(people):
            offset = (index - (len(people) - 1) / 2) * width
            for place, row in enumerate(rows):
                mean = who.mean(row)
                if mean is None:
                    continue
                half = who.interval(row)
                axes.bar(place + offset, mean / factor, width * 0.92, color=who.colour, edgecolor=INK, linewidth=0.5,
                         yerr=None if half is None else half / factor, error_kw=_whiskers())  # fmt: skip
                _label(axes, place + offset, (mean + (half or 0)) / factor, text.value(mean, row.unit))
        axes.set_xticks(range(len(rows)), [name(row) for row in rows], fontsize=8)
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_ylabel(unit)
        if drawing.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,g}"))
        if drawing.limit is not None:
            axes.axhline(drawing.limit / factor, color=INK, linewidth=0.8, linestyle="--")
        low, high = axes.get_ylim()
        axes.set_ylim(top=high * (2.2 if drawing.log else 1.18), bottom=low)
        axes.legend(handles=[_swatch(axes, who.colour, who.name) for who in people], fontsize=8, frameon=False,
                    loc="upper left", ncols=len(people), columnspacing=1.0, handlelength=1.2)  # fmt: skip

    return panel


def _kind(part: str) -> str:
    """``round.1.dump`` and ``final.dump`` are both a dump."""
    return part.rsplit(".", 1)[-1]


def _swatch(axes: Axes, colour: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor=INK, linewidth=0.5, label=name)


def _whiskers() -> dict[str, Any]:
    return {"elinewidth": 0.9, "capsize": 2.5, "ecolor": INK}


def _label(axes: Axes, place: float, height: float, words: str) -> None:
    axes.annotate(words, (place, height), (0, 4), textcoords="offset points", ha="center", fontsize=7, color=INK)


def _bar_label(stack: str, who: Who) -> str:
    """What the bar is of, and whose it is when it is not ours."""
    if not stack:
        return who.name
    return stack.replace(" ", "\n") + ("" if who.name == OURS else f"\n({who.name})")


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, color="#cccccc")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(axis="x", length=0)
