"""`whimbrel check`: the other engines, whose containers may be services here. None of them is needed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from whimbrel.model.errors import WhimbrelError
from whimbrel.runtime.engines import commands
from whimbrel.runtime.engines.docker import RUNTIME, Docker
from whimbrel.runtime.engines.podman import Podman

GUIDE = "see docs/engines.md"
Verdict = tuple[bool, str, str]


def docker() -> Verdict:
    """(in order, what was found, the way out)."""
    socket = Path("/run/docker.sock")
    if shutil.which("dockerd") is None and not socket.exists():
        return True, "not installed, and not needed unless its containers shall move", ""
    return _by_api(Docker(socket), "systemctl start docker")


def podman() -> Verdict:
    socket = Path("/run/podman/podman.sock")
    if shutil.which("podman") is None:
        return True, "not installed, and not needed unless its containers shall move", ""
    return _by_api(Podman(socket), "systemctl start podman.socket")


def lxc() -> Verdict:
    if shutil.which("lxc-start") is None:
        return True, "not installed, and not needed unless its containers shall move", ""
    if shutil.which("lxc-checkpoint") is None:
        return False, "lxc-checkpoint is missing: its containers can leave, but not arrive", "install the package lxc"
    version = asyncio.run(commands.run(["lxc-info", "--version"])).stdout.strip()
    return True, f"{version}: containers without terminals and with sysvinit can move", ""


def _by_api(engine: Docker, way_out: str) -> Verdict:
    try:
        info: dict[str, Any] = asyncio.run(engine.api.get("/info"))
    except WhimbrelError:
        return True, f"does not run at {engine.api.socket}: its containers cannot move until then (`{way_out}`)", ""
    version, driver = info.get("ServerVersion", "unknown"), info.get("Driver", "unknown")
    if any("userns" in option or "rootless" in option for option in info.get("SecurityOptions") or ()):
        return False, f"{version} maps user ids, which CRIU cannot follow", "switch userns-remap or rootless off"
    if driver not in engine.drivers:
        return False, f"{version} has the storage driver {driver}", f"use {' or '.join(engine.drivers)}"
    try:
        engine.refuse_daemon(info)
    except WhimbrelError:
        return False, f"{version} has no runtime {RUNTIME!r}: its containers can leave, but not arrive", GUIDE
    return True, f"{version}, storage driver {driver}", ""
