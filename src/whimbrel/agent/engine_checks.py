"""`whimbrel check`: the other engines, whose containers may be services here. None of them is needed.

Looked for where the agent looks for them: as `agent.toml` says, and where there is none by default.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from whimbrel.agent.config import AgentConfig, load_config
from whimbrel.model.errors import BadInput, WhimbrelError
from whimbrel.model.node import Role
from whimbrel.runtime.engines import commands
from whimbrel.runtime.engines.docker import RUNTIME, Docker
from whimbrel.runtime.engines.lxc import Lxc
from whimbrel.runtime.engines.podman import Podman

CONFIG = Path("/etc/whimbrel/agent.toml")
GUIDE = "see docs/engines.md"
Verdict = tuple[bool, str, str]
_NOT_THERE: Verdict = (True, "not installed, and not needed unless its containers shall move", "")


def settings() -> AgentConfig:
    """The agent's of this host, or all defaults."""
    try:
        return load_config(CONFIG)
    except BadInput:  # there is none, or the agent itself will tell what is wrong with it
        return AgentConfig(name="this host", role=Role.EDGE, host="127.0.0.1")


def docker() -> Verdict:
    """(in order, what was found, the way out)."""
    engine = Docker(Path(settings().docker_socket))
    if shutil.which("dockerd") is None and not engine.api.socket.exists():
        return _NOT_THERE
    return _by_api(engine, "systemctl start docker")


def podman() -> Verdict:
    engine = Podman(Path(settings().podman_socket))
    if shutil.which("podman") is None and not engine.api.socket.exists():
        return _NOT_THERE
    return _by_api(engine, "systemctl start podman.socket")


def lxc() -> Verdict:
    if shutil.which("lxc-start") is None:
        return _NOT_THERE
    if shutil.which("lxc-checkpoint") is None:
        return False, "lxc-checkpoint is missing: its containers can leave, but not arrive", "install the package lxc"
    path = settings().lxc_path
    try:
        asyncio.run(Lxc(Path(path), Path(), "").answers())
        version = asyncio.run(commands.run(["lxc-info", "--version"])).stdout.strip()
        listed = asyncio.run(commands.run(["lxc-ls", "-P", path]))
    except WhimbrelError as error:
        return False, str(error), GUIDE
    if listed.exit_code:
        cause = (listed.stderr or listed.stdout).strip().splitlines()[-1:] or [f"exit code {listed.exit_code}"]
        return False, f"{version} cannot list its containers in {path}: {cause[0]}", GUIDE
    return True, f"{version}, containers in {path}: those without terminals and with sysvinit can move", ""


def _by_api(engine: Docker, start: str) -> Verdict:
    try:
        info: dict[str, Any] = asyncio.run(engine.api.get("/info"))
    except WhimbrelError as error:
        return False, f"its containers cannot move: {error}", f"`{start}`, if any shall"
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
