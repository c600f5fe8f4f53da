"""What the services of one node share: a limit on the control group above theirs, and what they use of it.

Files of both versions (Linux, admin-guide/cgroup-v1/cpuacct.rst, scheduler/sched-bwc.rst, admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.limits import apply_limits

# Short, so that a task of some ms is slowed in proportion and not only one that outlasts the usual 100 ms; and a
# throttled service keeps nobody waiting for long who freezes it.
PERIOD_US = 10_000
LEAST_QUOTA_US = 1_000  # the kernel's own floor
_V2_CONTROLLERS = ("cpu", "memory")


def node_cgroup(node: str) -> Cgroup:
    """The group above those of a node's services (see `runtime.spec.cgroup_path`)."""
    return Cgroup(f"/whimbrel/{node}")


def limit_capacity(cgroup: Cgroup, cpus: float | None, memory_bytes: int = 0) -> None:
    """Let everything below `cgroup` use `cpus` processors and `memory_bytes` in all; None and 0: no limit.

    Safe to repeat. Raises Refused when this host's control groups cannot do it."""
    present = any(folder.is_dir() for folder in cgroup.folders)
    if cpus is None and not memory_bytes and not present:
        return
    cgroup.create()
    for folder in cgroup.folders:
        _pass_on_controllers(folder)
    try:
        apply_limits(cgroup, _words(cpus, memory_bytes))
    except WhimbrelError as error:
        raise Refused(f"the node's capacity cannot be limited: {error}") from error
    if cpus is not None and not _has(cgroup, "cpu.cfs_quota_us", "cpu.max"):
        raise Refused("`cpus` cannot be kept: no control group here has the controller cpu; leave the setting out")
    if memory_bytes and not _has(cgroup, "memory.limit_in_bytes", "memory.max"):
        raise Refused("`memory` cannot be kept: no control group here has the controller memory; leave it out")


def _words(cpus: float | None, memory_bytes: int) -> dict[str, str]:
    period_us, quota_us = PERIOD_US, -1
    if cpus is not None:
        period_us = max(PERIOD_US, int(LEAST_QUOTA_US / cpus))
        quota_us = max(LEAST_QUOTA_US, round(cpus * period_us))
    return {
        "cpu.cfs_period_us": str(period_us),
        "cpu.cfs_quota_us": str(quota_us),
        "cpu.max": f"{quota_us if quota_us > 0 else 'max'} {period_us}",
        "memory.limit_in_bytes": str(memory_bytes or -1),
        "memory.max": str(memory_bytes or "max"),
    }


def _has(cgroup: Cgroup, *names: str) -> bool:
    return any((folder / name).exists() for folder in cgroup.folders for name in names)


def _pass_on_controllers(folder: Path) -> None:
    """Version 2 alone: a group has a controller when every group above passes it on."""
    above = [parent for parent in folder.parents if (parent / "cgroup.subtree_control").exists()]
    for parent in reversed(above):
        offered = (parent / "cgroup.controllers").read_text().split()
        passed = (parent / "cgroup.subtree_control").read_text().split()
        for controller in _V2_CONTROLLERS:
            if controller in offered and controller not in passed:
                with contextlib.suppress(OSError):  # then the limit's file is missing, which is said
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def cpu_used_s(cgroup: Cgroup) -> float | None:
    """Processor time of everything below, ever; None where nothing counts it."""
    for folder in cgroup.folders:
        with contextlib.suppress(OSError, ValueError):
            return int((folder / "cpuacct.usage").read_text()) / 1e9
        with contextlib.suppress(OSError, KeyError):
            return _stat(folder)["usage_usec"] / 1e6
    return None


def throttled_s(cgroup: Cgroup) -> float:
    """How long its processes were kept from running by the limit, summed over processors."""
    for folder in cgroup.folders:
        with contextlib.suppress(OSError, KeyError):
            stat = _stat(folder)
            return stat["throttled_time"] / 1e9 if "throttled_time" in stat else stat["throttled_usec"] / 1e6
    return 0.0


def _stat(folder: Path) -> dict[str, int]:
    lines = (folder / "cpu.stat").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
