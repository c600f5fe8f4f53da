"""What this node is and has: versions and features that must agree between nodes, and free resources."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import psutil

from whimbrel import __version__
from whimbrel.agent.config import AgentConfig
from whimbrel.agent.monitor import Monitor
from whimbrel.checkpoint.swrk import criu_path
from whimbrel.memory.softdirty import has_soft_dirty
from whimbrel.memory.uffd import missing_support
from whimbrel.migrate.preflight import stage_room_bytes
from whimbrel.model.node import Capabilities, Resources
from whimbrel.runtime.capacity import node_cgroup


def _version(*argv: str) -> str:
    """The first version number that a program prints; "none" when it is not installed."""
    try:
        text = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    match = re.search(r"\d+(\.\d+)+", text)
    return match.group(0) if match else "none"


def _cpu_features() -> tuple[str, ...]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return tuple(sorted(value.split()))
    return ()


@functools.cache
def collect_capabilities() -> Capabilities:
    """Asked once per process: none of it changes while the agent runs."""
    return Capabilities(
        whimbrel=__version__,
        machine=platform.machine(),
        kernel=platform.release(),
        criu=_version(criu_path(), "--version"),
        runc=_version("runc", "--version"),
        cpu_features=_cpu_features(),
        write_protect_tracking=missing_support() is None,
        soft_dirty=has_soft_dirty(),
        lazy_pages=Path("/proc/sys/vm/unprivileged_userfaultfd").exists(),
        rsync=shutil.which("rsync") is not None,
    )


def collect_resources(config: AgentConfig, monitor: Monitor | None = None) -> Resources:
    """What the node has and uses; without a `monitor`, only what can be seen at one look."""
    state_dir, memory = config.directory, psutil.virtual_memory()
    cpus = os.cpu_count() or 1
    limit = min(config.memory_bytes or memory.total, memory.total)
    used = node_cgroup(config.name).memory_bytes() or 0
    directory = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    run_dir = state_dir / "run"
    disk = shutil.disk_usage(directory)
    resources = Resources(
        cpus=cpus,
        load_1min=os.getloadavg()[0],
        memory_total_bytes=memory.total,
        memory_available_bytes=min(memory.available, max(0, limit - used)),
        disk_available_bytes=disk.free,
        stage_available_bytes=stage_room_bytes(run_dir if run_dir.exists() else directory),
        cpu_capacity=config.cpus or float(cpus),
        memory_capacity_bytes=limit,
        memory_used_bytes=used,
        disk_total_bytes=disk.total,
    )
    return resources if monitor is None else _with_use(resources, monitor)


def _with_use(resources: Resources, monitor: Monitor) -> Resources:
    network, power = monitor.network, monitor.power
    return msgspec.structs.replace(
        resources,
        cpus_used=monitor.cpus_used,
        # One thread keeps one processor busy at most
        computing_power=power.events_per_s * min(1.0, resources.cpu_capacity) if power else 0.0,
        network_capacity_bps=network.capacity_bps,
        network_received_bps=network.received.per_s,
        network_sent_bps=network.sent.per_s,
    )
