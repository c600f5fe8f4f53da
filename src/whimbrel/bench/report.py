"""What a benchmark writes: the machine, the parameters, every run, and a summary with ratios. Pure but for
`machine`."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from whimbrel import __version__
from whimbrel.bench.table import ms
from whimbrel.client.outage import median, quantile
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.plan.costs import HYBRID
from whimbrel.plan.strategies import AUTO

BASELINE = "baseline"
FIGURES = ("outage_udp_ms", "outage_tcp_ms", "freeze_ms", "total_ms", "bytes_sent", "faults", "fault_ms")
HEADINGS = ("service", "strategy", "n", "outage UDP p50", "p95", "outage TCP p50", "p95", "freeze", "total",
            "lost", "resets", "state", "UDP vs baseline", "TCP", "p95 <= 2 x p50", "promised")  # fmt: skip
PASS, FAIL = "PASS", "FAIL"


def fails(result: dict[str, Any]) -> bool:
    """Does anything that a benchmark found fall short of what is promised? It says so once for all, or in rows."""
    verdicts = [result, *result.get("summary", ())]
    return any(str(one.get(key, "")).startswith(FAIL) for one in verdicts for key in ("promised", "verdict"))


ENOUGH = 10
SPREAD = 2.0


@dataclass(frozen=True)
class Promise:
    """SPECIFICATION's figures for a service: medians of at least `ENOUGH` migrations, of UDP and of TCP alike; `ratio`
    is to the baseline's median, of as many."""

    outage_ms: float
    ratio: float


PROMISES = {
    "20 MB, 500 pages/s": Promise(100, 1 / 3),
    "200 MB, 500 pages/s": Promise(100, 1 / 5),
    "1 GB, 500 pages/s": Promise(120, 1 / 15),
}
PROMISED_OF = frozenset({AUTO, HYBRID})


def machine() -> dict[str, Any]:
    """Facts that a reader needs to compare figures: processor, memory, kernel, versions."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        "",
    )
    memory_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "machine": platform.machine(),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_bytes": memory_kb * 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "whimbrel": __version__,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def spread(values: Iterable[float | int | None]) -> dict[str, float] | None:
    """``{"p50", "p95"}`` of the measured values; None when nothing was measured."""
    known = [float(value) for value in values if value is not None]
    return {"p50": median(known), "p95": quantile(known, 0.95)} if known else None


def groups(records: Iterable[MigrationRecord]) -> dict[tuple[str, str], list[MigrationRecord]]:
    """Records by (workload, strategy that was asked for), in the order of their first appearance."""
    found: dict[tuple[str, str], list[MigrationRecord]] = {}
    for record in records:
        found.setdefault((record.workload, record.asked or record.strategy), []).append(record)
    return found


def summary(records: Iterable[MigrationRecord]) -> list[dict[str, Any]]:
    """One entry per workload and strategy asked for, and how often each strategy was what it `came_to`. `ratio_*` =
    median over the baseline's median of that workload; only runs that came to their end count, `failed` tells how many
    did not. `spread_ok`: no 95th percentile is over twice its median. `promised`: see there."""
    entries: list[dict[str, Any]] = []
    for (workload, strategy), all_runs in groups(records).items():
        runs = [run for run in all_runs if run.outcome is Outcome.DONE]
        came_to = dict(Counter(run.strategy for run in runs))
        entry: dict[str, Any] = {"strategy": strategy, "came_to": came_to, "workload": workload, "n": len(runs)}
        entry |= {figure: spread(getattr(run, figure) for run in runs) for figure in FIGURES}
        entry["lost"] = sum(run.lost or 0 for run in runs)
        entry["resets"] = sum(run.resets or 0 for run in runs)
        entry["state_ok"] = all(run.state_ok is not False for run in runs)
        entry["failed"] = len(all_runs) - len(runs)
        entry["phases_ms"] = phase_medians(runs)
        entries.append(entry)
    baselines = {entry["workload"]: entry for entry in entries if entry["strategy"] == BASELINE}
    for entry in entries:
        base = baselines.get(entry["workload"])
        for protocol in ("udp", "tcp"):
            ours, theirs = entry[f"outage_{protocol}_ms"], base and base[f"outage_{protocol}_ms"]
            if base and entry is not base and ours and theirs and theirs["p50"] > 0:
                entry[f"ratio_{protocol}"] = ours["p50"] / theirs["p50"]
                entry["n_baseline"] = base["n"]
    for entry in entries:
        measured = [entry[f"outage_{protocol}_ms"] for protocol in ("udp", "tcp") if entry[f"outage_{protocol}_ms"]]
        entry["spread_ok"] = all(one["p95"] <= SPREAD * one["p50"] for one in measured) if measured else None
        entry["promised"] = promised(entry)
    return entries


def promised(entry: dict[str, Any]) -> str:
    """Do SPECIFICATION's figures hold for a row of the summary? `PASS`, `FAIL` with what does not, or what is missing
    to say so; empty where it has none."""
    promise = PROMISES.get(entry["workload"])
    if promise is None or entry["strategy"] not in PROMISED_OF:
        return ""
    wrong, unknown = [], []
    for protocol in ("udp", "tcp"):
        outage, ratio, name = entry[f"outage_{protocol}_ms"], entry.get(f"ratio_{protocol}"), protocol.upper()
        if outage is not None and outage["p50"] > promise.outage_ms:
            wrong.append(f"{name} > {promise.outage_ms:.0f} ms")
        if ratio is None:
            unknown.append(f"{name} without baseline")
        elif ratio > promise.ratio:
            wrong.append(f"{name} > 1/{1 / promise.ratio:.0f}")
    if entry.get("spread_ok") is False:
        wrong.append(f"p95 > {SPREAD:.0f} x p50")
    wrong += [name for name in ("lost", "resets", "failed") if entry[name]]
    wrong += [] if entry["state_ok"] else ["state"]
    if wrong:
        return f"{FAIL}: {', '.join(wrong)}"
    if entry.get("n_baseline", ENOUGH) < ENOUGH:
        unknown.insert(0, f"n < {ENOUGH} of the baseline")
    if entry["n"] < ENOUGH:
        unknown.insert(0, f"n < {ENOUGH}")
    return f"unproved: {', '.join(unknown)}" if unknown else PASS


def phase_medians(records: Sequence[MigrationRecord]) -> dict[str, float]:
    """Median duration in ms of each phase over all records that have it, in the order they happen."""
    starts: dict[str, list[float]] = {}
    durations: dict[str, list[float]] = {}
    for record in records:
        for phase in record.phases:
            starts.setdefault(phase.name, []).append(phase.start_ms)
            durations.setdefault(phase.name, []).append(phase.duration_ms)
    return {name: median(durations[name]) for name in sorted(durations, key=lambda name: median(starts[name]))}


def summary_cells(entry: dict[str, Any]) -> tuple[str, ...]:
    """One row of the summary, in the order of `HEADINGS`."""

    def figure(name: str, part: str = "p50") -> str:
        return ms(entry[name][part]) if entry[name] else "-"

    def ratio(protocol: str) -> str:
        value = entry.get(f"ratio_{protocol}")
        return "-" if not value else f"1/{1 / value:.1f}"

    others = [name for name in entry["came_to"] if name != entry["strategy"]]
    return (
        entry["workload"],
        entry["strategy"] + (f" ({', '.join(others)})" if others else ""),
        str(entry["n"]) + (f" (+{entry['failed']} failed)" if entry["failed"] else ""),
        figure("outage_udp_ms"),
        figure("outage_udp_ms", "p95"),
        figure("outage_tcp_ms"),
        figure("outage_tcp_ms", "p95"),
        figure("freeze_ms"),
        figure("total_ms"),
        str(entry["lost"]),
        str(entry["resets"]),
        "ok" if entry["state_ok"] else "DAMAGED",
        ratio("udp"),
        ratio("tcp"),
        {True: PASS, False: FAIL, None: "-"}[entry["spread_ok"]],
        entry["promised"] or "-",
    )


def document(parameters: dict[str, Any], records: Sequence[MigrationRecord]) -> dict[str, Any]:
    """The whole result in the form that DESIGN fixes; plain values, ready for JSON."""
    return {
        "machine": machine(),
        "parameters": parameters,
        "runs": [msgspec.to_builtins(record) for record in records],
        "summary": summary(records),
    }
