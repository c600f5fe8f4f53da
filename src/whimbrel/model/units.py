"""Reading sizes, times and rates that people write; names carry the unit afterwards."""

from __future__ import annotations

import re

from whimbrel.model.errors import BadInput

PAGE_BYTES = 4096

_SIZES = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
          "ki": 2**10, "kib": 2**10, "mi": 2**20, "mib": 2**20, "gi": 2**30, "gib": 2**30}  # fmt: skip
_TIMES_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
_RATES_BPS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def _split(text: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z/]*)\s*", text)
    unit = match.group(2).lower().removesuffix("/s") if match else ""
    if match is None or unit not in units:
        raise BadInput(f"{text!r} is not a {what}: write it like {example}")
    return float(match.group(1)) * units[unit]


def parse_size_bytes(text: str) -> int:
    """``200MiB`` -> 209715200. Raises BadInput."""
    return int(_split(text, _SIZES, "size", "200MiB or 1GB"))


def parse_duration_ms(text: str) -> float:
    """``100ms`` -> 100.0, ``2s`` -> 2000.0. Raises BadInput."""
    return _split(text, _TIMES_MS, "time", "100ms or 2s")


def parse_rate_bps(text: str) -> float:
    """``100mbit`` -> 1e8 bits per second. Raises BadInput."""
    return _split(text, _RATES_BPS, "bandwidth", "100mbit or 1gbit")


def format_bytes(size_bytes: float) -> str:
    """``1536`` -> ``1.5 kB`` (decimal units, three significant digits at most)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 1000 or unit == "GB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable")


def format_rate(rate_bps: float) -> str:
    """``75e6`` -> ``75 Mbit/s`` (three significant digits at most)."""
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if rate_bps < 999.5 or unit == "Gbit/s":
            return f"{rate_bps:.3g} {unit}"
        rate_bps /= 1000
    raise AssertionError("unreachable")
