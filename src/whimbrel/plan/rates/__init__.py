"""B_ub of eq. (4): the bit rate of a radio link from its RSSI and the access technology's rate table."""

from __future__ import annotations

from bisect import bisect_right

from whimbrel.model.errors import BadInput
from whimbrel.plan.rates.tables import TABLES, RateTable


def table_of(technology: str) -> RateTable:
    """Raises BadInput for a technology without a table."""
    try:
        return TABLES[technology]
    except KeyError:
        raise BadInput(f"there is no rate table {technology!r}: choose from {', '.join(sorted(TABLES))}") from None


def rate_bps(technology: str, rssi_dbm: float) -> float:
    """The physical rate at this RSSI, bits per second; 0 below the table's first step. Raises BadInput."""
    steps = table_of(technology).steps
    index = bisect_right(steps, (rssi_dbm, float("inf")))
    return steps[index - 1][1] if index else 0.0


def floor_dbm(technology: str) -> float:
    """The least RSSI at which anything can be decoded. Raises BadInput."""
    return table_of(technology).steps[0][0]


__all__ = ["TABLES", "RateTable", "floor_dbm", "rate_bps", "table_of"]
