"""The exact problem by CBC (COIN-OR), the paper's own solver [14]: the program `cbc`, where it is installed (Debian's
package is coinor-cbc). It gets the problem as a file in MPS format and says in another what it found."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from whimbrel.model.errors import Refused, StepFailed
from whimbrel.plan.placement.problem import Answer, Problem
from whimbrel.solvers import highs
from whimbrel.solvers.matrix import Program

NAME = "cbc"
TOLERANCE = 1e-6
PATIENCE_S = 0.5
"""Beyond the time that it was given it is ended: it looks at the clock between two nodes only, and before that it reads
the problem."""


def installed() -> bool:
    return shutil.which(NAME) is not None


def solver(*, seconds: float = 60.0, gap: float = 1e-4) -> Callable[[Problem], Answer]:
    """As `highs.solver`. Raises Refused where there is no `cbc`."""
    if not installed():
        raise Refused("there is no program `cbc` on this machine: install coinor-cbc, or take the solver highs")
    return highs.solver(seconds=seconds, gap=gap, by=run, name=NAME)


def run(made: Program, seconds: float, gap: float) -> tuple[np.ndarray | None, bool, float]:
    """As `highs.run`. Raises StepFailed when `cbc` fails."""
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="whimbrel-cbc-") as folder:
        model, solution = Path(folder) / "model.mps", Path(folder) / "solution.txt"
        model.write_text(mps(made))
        # without timeMode it counts processor time, of which a busy machine gives it little
        limits = ["-timeMode", "elapsed", "-sec", f"{seconds:g}", "-ratio", f"{gap:g}"]
        argv = [NAME, str(model), *limits, "-solve", "-solution", str(solution)]
        try:
            # what writing the problem took was part of its time
            left_s = max(0.0, seconds - (time.monotonic() - begun_s)) + PATIENCE_S
            done = subprocess.run(argv, capture_output=True, text=True, timeout=left_s, check=False)
        except subprocess.TimeoutExpired:
            return None, False, -np.inf
        if done.returncode or not solution.exists():
            raise StepFailed(f"cbc failed (exit code {done.returncode}): {done.stdout.strip().splitlines()[-1:]}")
        x, infeasible, bound = _read(solution.read_text(), done.stdout, len(made.cost), gap)
        # stopped before it had any answer, it writes down where it stood
        return (x if x is not None and _holds(made, x) else None), infeasible, bound


def _holds(made: Program, x: np.ndarray) -> bool:
    """Whether these are whole numbers that keep every row."""
    whole = np.round(x)
    rows = made.matrix @ whole
    slack = TOLERANCE * np.maximum(1.0, np.abs(rows))
    kept = (rows <= made.upper + slack) & (rows >= made.lower - slack)
    return bool((np.abs(x - whole) <= TOLERANCE).all() and kept.all())


def mps(made: Program) -> str:
    """The program in free MPS format, minimising."""
    matrix = made.matrix.tocsc()
    kinds = ["E" if low == high else "L" for low, high in zip(made.lower, made.upper, strict=True)]
    lines = ["NAME whimbrel FREE", "ROWS", " N cost"]
    bounded = np.isfinite(made.upper)
    lines += [f" {kinds[row]} r{row}" for row in np.flatnonzero(bounded)]
    lines += ["COLUMNS", " M1 'MARKER' 'INTORG'"]
    for column, cost in enumerate(made.cost):
        lines.append(f" x{column} cost {float(cost)!r}")
        for at in range(matrix.indptr[column], matrix.indptr[column + 1]):
            row = matrix.indices[at]
            if bounded[row]:
                lines.append(f" x{column} r{row} {float(matrix.data[at])!r}")
    lines += [" M2 'MARKER' 'INTEND'", "RHS"]
    lines += [f" rhs r{row} {float(made.upper[row])!r}" for row in np.flatnonzero(bounded)]
    lines += ["BOUNDS", *(f" UP bnd x{column} 1" for column in range(len(made.cost))), "ENDATA", ""]
    return "\n".join(lines)


def _read(solution: str, log: str, columns: int, gap: float) -> tuple[np.ndarray | None, bool, float]:
    """The file's first line says how it ended, the others name the columns that are not 0."""
    status, _, rest = solution.partition("\n")
    if "nfeasible" in status:
        return None, True, -np.inf
    objective = re.search(r"objective value\s+(\S+)", status)
    if objective is None or "no solution" in status.lower():
        return None, False, -np.inf
    x = np.zeros(columns)
    for line in rest.splitlines():
        words = line.replace("**", "").split()
        if len(words) >= 3 and re.fullmatch(r"x\d+", words[1]):
            x[int(words[1][1:])] = float(words[2])
    if status.startswith("Optimal"):
        # within the gap that was asked for
        return x, False, float(objective[1]) - gap * abs(float(objective[1]))
    bounds = re.findall(r"^Lower bound:\s+(-?[\d.e+]+)", log, re.M)
    return x, False, float(bounds[-1]) if bounds else -np.inf
