from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from containers import Node, make_image

from whimbrel.network import netns
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.storage.images import Image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "needs root for containers" if os.geteuid() != 0 else ""
    if not reason and shutil.which("runc") is None:
        reason = "needs runc"
    for item in items:
        if reason and item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make_image(tmp_path)


@pytest.fixture
async def make_node(tmp_path: Path, image: Image) -> AsyncIterator[Callable[[str], Awaitable[Node]]]:
    """Makes nodes whose services, namespaces and control groups are gone after the test."""
    made: list[Node] = []

    async def make(name: str) -> Node:
        space = tmp_path / f"netns-{name}"
        netns.create(space)
        netns.call(space, _loopback_up)
        made.append(Node(f"t{os.getpid()}-{name}", tmp_path / name, image, space))
        return made[-1]

    try:
        yield make
    finally:
        for node in made:
            for state in await node.runc.list():
                await node.remove(state.id)
            for folder in (node.folder / "services").glob("*"):
                node.layer(folder.name).remove()
            netns.remove(node.netns)
            everything = Cgroup(f"/whimbrel/{node.name}")
            everything.kill_all()
            everything.remove(with_parents=True)


def _loopback_up() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
