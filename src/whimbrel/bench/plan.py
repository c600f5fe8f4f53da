"""`whimbrel bench plan`: how soon and how near to the optimum the planner is, in regions made up from seeds.

Each region is planned within the deadline, and then the same problem is given to HiGHS whole, with much more time. The
optimum lies between the best answer and the least bound that anybody found; the distance shown is to that bound, so
it is never better than the truth. Every plan is held against the constraints by a checker of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from whimbrel.bench import table
from whimbrel.bench.report import FAIL, PASS, machine
from whimbrel.client.outage import median
from whimbrel.model.edge import Observation
from whimbrel.model.errors import StepFailed
from whimbrel.model.placement import Policy, relative_gap
from whimbrel.plan.made import region
from whimbrel.plan.placement.check import violations
from whimbrel.plan.placement.plans import plan_of
from whimbrel.plan.placement.problem import Answer, Problem, formulate
from whimbrel.plan.planners import planner_of
from whimbrel.solvers import highs
from whimbrel.solvers.timed import within

DEADLINE_S = 1.0
PROMISED_S, PROMISED_GAP = 1.0, 0.01
SOLVE_SHARE = 0.8
"""Of the deadline; the rest is for making the plan from the answer, and for a machine that is busy."""
HEADINGS = ("region", "users", "servers", "stations", "options", "n", "time", "worst", "from optimum", "worst gap",
            "left", "at least", "constraints", "promised")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`promised`: the figure is held against time and gap."""

    name: str
    users: int
    servers: int
    stations: int
    tightness: float
    heard: int = 0
    attached: bool = True
    settled: bool = True
    promised: bool = True

    def region(self, seed: int) -> Observation:
        return region(
            users=self.users,
            servers=self.servers,
            stations=self.stations,
            tightness=self.tightness,
            heard=self.heard,
            attached=self.attached,
            settled=self.settled,
            seed=seed,
        )


CASES = (
    Case("20 candidates each", 1000, 20, 20, 0.8),
    Case("20 x 20 candidates each", 1000, 20, 20, 0.8, attached=False),
    Case("nearly full", 1000, 20, 20, 0.93, promised=False),
    Case("more than fits", 1000, 20, 20, 1.1, settled=False, promised=False),
    Case("small", 100, 5, 5, 0.8),
)


def measure(case: Case, seed: int, *, exact_s: float) -> dict[str, Any]:
    """One region: our plan within the deadline, and HiGHS for `exact_s` (0: not at all) beside it."""
    seen, policy = case.region(seed), Policy()
    begin_s = time.monotonic()
    plan = planner_of("orchestrated").plan(seen, policy, within(DEADLINE_S * SOLVE_SHARE, began_s=begin_s))
    took_s = time.monotonic() - begin_s
    problem = formulate(seen, policy)
    exact = _exact(problem, exact_s) if exact_s > 0 else None
    least_bound = plan.bound_ms
    if exact is not None and exact.left >= len(plan.left):
        # a bound for as many left or more holds for ours
        least_bound = min(least_bound, max(exact.bound, plan.profit_ms))
    return {
        "case": case.name,
        "seed": seed,
        "options": int(problem.options.sum()),
        "took_s": took_s,
        "profit_ms": plan.profit_ms,
        "bound_ms": plan.bound_ms,
        "gap": plan.gap,
        "from_optimum": relative_gap(plan.profit_ms, least_bound),
        "left": len(plan.left),
        "left_at_least": max(plan.left_at_least, exact.left_at_least if exact else 0),
        "violations": list(violations(seen, plan)),
        "why_left": _reasons([one.why for one in plan.left]),
        "by": plan.by,
        "exact": None if exact is None else _exact_figures(problem, exact, seen),
    }


def _exact(problem: Problem, seconds: float) -> Answer | None:
    try:
        return highs.solver(seconds=seconds, gap=1e-4)(problem)
    except StepFailed:  # it found nothing in this time
        return None


def _exact_figures(problem: Problem, exact: Answer, seen: Observation) -> dict[str, Any]:
    return {
        "profit_ms": exact.profit,
        "bound_ms": exact.bound,
        "left": exact.left,
        "left_at_least": exact.left_at_least,
        "violations": list(violations(seen, plan_of(problem, exact, exact.by))),
    }


def _reasons(lines: Sequence[str]) -> dict[str, int]:
    return {line: lines.count(line) for line in sorted(set(lines))}


def summary(runs: Sequence[dict[str, Any]], cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """A row for each case: medians, the worst of each, and whether it keeps what is promised."""
    rows = []
    for case in cases:
        mine = [run for run in runs if run["case"] == case.name]
        if not mine:
            continue
        slowest = max(run["took_s"] for run in mine)
        furthest = max(run["from_optimum"] for run in mine)
        wrong = sum(len(run["violations"]) for run in mine)
        keeps = slowest <= PROMISED_S and furthest <= PROMISED_GAP and not wrong
        rows.append(
            {
                "case": case.name,
                "users": case.users,
                "servers": case.servers,
                "stations": case.stations,
                "options": median([float(run["options"]) for run in mine]),
                "n": len(mine),
                "took_s": median([run["took_s"] for run in mine]),
                "slowest_s": slowest,
                "from_optimum": median([run["from_optimum"] for run in mine]),
                "furthest": furthest,
                "left": max(run["left"] for run in mine),
                "left_at_least": max(run["left_at_least"] for run in mine),
                "violations": wrong,
                "promised": ("" if not case.promised and not wrong else PASS if keeps else FAIL),
            }
        )
    return rows


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["case"],
        str(row["users"]),
        str(row["servers"]),
        str(row["stations"]),
        f"{row['options']:.0f}",
        str(row["n"]),
        table.ms(row["took_s"] * 1000),
        table.ms(row["slowest_s"] * 1000),
        f"{row['from_optimum']:.2%}",
        f"{row['furthest']:.2%}",
        str(row["left"]),
        str(row["left_at_least"]),
        "kept" if not row["violations"] else f"{row['violations']} BROKEN",
        row["promised"] or "-",
    )


def run(console: Console, *, seeds: int = 10, exact_s: float = 30.0, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """All cases with so many seeds each; prints a table, and of the last infeasible region why who is left."""
    runs = []
    for case in cases:
        for seed in range(seeds):
            runs.append(measure(case, seed, exact_s=exact_s))
            console.print(
                f"{case.name}, seed {seed}: {table.ms(runs[-1]['took_s'] * 1000)}", highlight=False, markup=False
            )
    rows = summary(runs, cases)
    table.show(console, HEADINGS, [cells(row) for row in rows])
    for line, count in next((one["why_left"] for one in reversed(runs) if one["left"]), {}).items():
        console.print(f"left: {count} x {line}", highlight=False, markup=False)
    return {
        "machine": machine(),
        "parameters": {"deadline_s": DEADLINE_S, "exact_s": exact_s, "seeds": seeds},
        "runs": runs,
        "summary": rows,
    }
