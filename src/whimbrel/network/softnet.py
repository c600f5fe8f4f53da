"""Frames that this host has received and not looked at yet."""

from __future__ import annotations

from pathlib import Path

_BACKLOG = 11
"""Which column of /proc/net/softnet_stat has the length of a processor's backlog, in hexadecimal (Linux 5.10)."""


def frames_waiting(table: Path = Path("/proc/net/softnet_stat")) -> int:
    """On all processors; 0 where the kernel does not say. Pairs of virtual interfaces deliver through these backlogs,
    and on a host that is busy one may stand for some milliseconds."""
    rows = (line.split() for line in table.read_text().splitlines())
    return sum(int(row[_BACKLOG], 16) for row in rows if len(row) > _BACKLOG)
