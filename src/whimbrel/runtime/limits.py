"""A control group's limits, carried to another node's group as files: for engines that leave this to CRIU, whose own
way would be to carry the groups' names too."""

from __future__ import annotations

from whimbrel.model.errors import WhimbrelError
from whimbrel.runtime.cgroups import Cgroup

LIMITS = (
    "blkio.weight",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.max",
    "cpu.shares",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.high",
    "memory.limit_in_bytes",
    "memory.max",
    "memory.soft_limit_in_bytes",
    "memory.swappiness",
    "pids.max",
)
DEVICES = "devices.list"
_EVERYTHING = "a *:* rwm"


def read_limits(cgroup: Cgroup) -> dict[str, str]:
    """What the group is limited to, by the names of the kernel's files; those that this host has."""
    found = {}
    for folder in cgroup.folders:
        for name in (*LIMITS, DEVICES):
            if (folder / name).exists():
                found[name] = (folder / name).read_text().strip()
    return found


def apply_limits(cgroup: Cgroup, limits: dict[str, str]) -> None:
    """Limit a group likewise. Only what differs is written. Raises WhimbrelError for what this host cannot give."""
    here = read_limits(cgroup)
    for name, value in limits.items():
        if name == DEVICES:
            continue
        if name in LIMITS and name in here and here[name] != value:
            _write(cgroup, name, value)
    allowed = limits.get(DEVICES, _EVERYTHING)
    if DEVICES in here and allowed != here[DEVICES]:
        _write(cgroup, "devices.deny", "a")
        for line in allowed.splitlines():
            _write(cgroup, "devices.allow", line)


def _write(cgroup: Cgroup, name: str, value: str) -> None:
    for folder in cgroup.folders:
        if (folder / name).exists():
            try:
                (folder / name).write_text(value)
            except OSError as error:
                raise WhimbrelError(f"the limit {name} = {value} cannot be set here: {error.strerror}") from error
