"""One node in a namespace of its own, with a bridge that is its overlay, and a host of services on it."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from whimbrel.agent.services import ServiceHost
from whimbrel.model.service import ServiceSpec
from whimbrel.network import netns
from whimbrel.network.names import BRIDGE, mac_of
from whimbrel.network.port import ServicePort
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.storage.layer import unmount

GATEWAY = "10.77.0.1/16"
SLEEP = "echo started; exec sleep 1000"


def tiny_rootfs(root: Path) -> Path:
    """A shell, `sleep` and `cat`, and the libraries they are linked to."""
    for name in ("sh", "sleep", "cat"):
        program = shutil.which(name)
        assert program is not None
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        libraries = re.findall(r"(/\S+) \(0x", listed)
        for source, place in [
            (program, root / "bin" / name),
            *((x, root / x.lstrip("/")) for x in libraries),
        ]:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    for name in ("dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return root


def _bridge() -> None:
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        ip.link("add", ifname=BRIDGE, kind="bridge", address=mac_of(GATEWAY))
        index = ip.link_lookup(ifname=BRIDGE)[0]
        ip.addr("add", index=index, address=GATEWAY.split("/")[0], prefixlen=16)
        ip.link("set", index=index, state="up")


class ServiceNode:
    def __init__(self, tmp_path: Path, name: str) -> None:
        self.name = f"t{os.getpid()}-{name}"
        self.state_dir = tmp_path / name
        self.namespace = tmp_path / f"{name}.netns"
        self.rootfs = tmp_path / "tiny"
        if not self.rootfs.exists():
            tiny_rootfs(self.rootfs)
        netns.create(self.namespace)
        netns.call(self.namespace, _bridge)

    def host(self) -> ServiceHost:
        """A new host on the same folders, as a restarted agent makes one. Call it inside `run`."""
        return ServiceHost(self.name, self.state_dir, ServicePort(self.state_dir / "netns"), GATEWAY)

    def run(self, story: Callable[[ServiceHost], Coroutine[Any, Any, None]]) -> None:
        """Tell a story on this node: all its threads and programs live in the node's namespace."""

        async def tell() -> None:
            host = self.host()
            await host.load()
            await story(host)

        netns.call(self.namespace, lambda: asyncio.run(tell()))

    def spec(self, name: str = "svc", script: str = SLEEP, number: int = 1, **more: Any) -> ServiceSpec:
        return ServiceSpec(
            name=name,
            image=f"rootfs:{self.rootfs}",
            address=f"10.77.9.{number}/16",
            args=("/bin/sh", "-c", script),
            **more,
        )

    def assert_clean(self) -> None:
        """Nothing of any service is left: files, mounts, control groups, processes, namespaces, ports."""
        kinds = ("services", "volumes", "netns", "run/runc", "run/waiting")
        left = [str(path) for kind in kinds for path in (self.state_dir / kind).glob("*")]
        assert left == []
        mounts = Path("/proc/self/mountinfo").read_text()
        assert f"{self.state_dir}/" not in mounts
        everything = Cgroup(f"/whimbrel/{self.name}")
        assert everything.pids() == []
        assert [path for folder in everything.folders for path in folder.glob("*/")] == []
        interfaces = netns.call(self.namespace, socket.if_nameindex)
        assert [name for _, name in interfaces] == ["lo", BRIDGE]

    def close(self) -> None:
        self.run(_remove_all)
        everything = Cgroup(f"/whimbrel/{self.name}")
        everything.kill_all()
        everything.remove(with_parents=True)
        for folder in (self.state_dir / "services").glob("*/*"):
            unmount(folder)
        netns.remove(self.namespace)


async def _remove_all(host: ServiceHost) -> None:
    await host.sweep()
    for name in host.names():
        await host.discard(name)


async def answers(address: str) -> bool:
    """Whether the kernel behind the address answers: it refuses a connection to a port that nobody has."""
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(0.5):
                await asyncio.get_running_loop().sock_connect(sock, (address.split("/")[0], 9))
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
        return False


async def until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
