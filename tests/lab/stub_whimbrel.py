"""Stands in for `python -m whimbrel agent|controller`: answers a call, or misbehaves when told so."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

from whimbrel.model.node import Capabilities, Endpoint, NodeStatus, Resources, Role
from whimbrel.network import netns
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.wire.calls import GetNode
from whimbrel.wire.rpc import RpcServer


def _litter(config: dict) -> None:  # type: ignore[type-arg]
    """What an agent leaves when it is killed: a mount, a frozen container in its own namespace, a helper."""
    state = Path(config["state_dir"])
    (state / "run").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "whimbrel", str(state / "run")], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "whimbrel", str(state / "run")], check=True)
    netns.create(state / "netns" / "demo")
    container = netns.call(
        state / "netns" / "demo", lambda: subprocess.Popen(["sleep", "1000"], start_new_session=True)
    )
    group = Cgroup(f"/whimbrel/{config['name']}/demo")
    group.create()
    group.attach(container.pid)
    for folder in group.folders:
        if (folder / "freezer.state").exists():
            (folder / "freezer.state").write_text("FROZEN")
    subprocess.Popen(["sleep", "1000"], start_new_session=True)


async def _agent(config: dict) -> None:  # type: ignore[type-arg]
    endpoint = Endpoint(
        name=config["name"], role=Role(config["role"]), host=config["host"], port=config["port"],
        overlay_host=config["overlay_host"],
    )  # fmt: skip
    capabilities = Capabilities(whimbrel="0", machine="", kernel="", criu="", runc="")
    resources = Resources(
        cpus=1,
        load_1min=0,
        memory_total_bytes=1,
        memory_available_bytes=1,
        disk_available_bytes=1,
        stage_available_bytes=1,
    )

    async def node(_: GetNode, __: object) -> NodeStatus:
        return NodeStatus(endpoint=endpoint, capabilities=capabilities, resources=resources)

    await RpcServer({GetNode: node}).start(config["host"], config["port"])
    if os.environ.get("STUB_LITTER") == config["name"]:
        _litter(config)
    await asyncio.Event().wait()


async def _controller(config: dict) -> None:  # type: ignore[type-arg]
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    await asyncio.start_unix_server(answer, config["listen"].removeprefix("unix:"))
    await asyncio.Event().wait()


def main() -> None:
    kind, _, path = sys.argv[1:]
    config = tomllib.loads(Path(path).read_text())
    if os.environ.get("STUB_FAILS") == config.get("name", kind):
        print("first line\nerror: no such luck", flush=True)
        sys.exit(1)
    if os.environ.get("STUB_STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_agent(config) if kind == "agent" else _controller(config))


main()
