"""A small network of plain namespaces: three nodes with a bridge each, and a user, on one switch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from bench_net import NODES, USER_ADDRESS, Net, Running, ip

from whimbrel.network.names import mac_of
from whimbrel.workloads.memory import service


@pytest.fixture(scope="session")
def net() -> Iterator[Net]:
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    tag = f"wt{os.getpid()}"
    switch, user = f"{tag}-sw", f"{tag}-user"
    nodes = tuple(f"{tag}-{name}" for name in NODES)
    with contextlib.ExitStack() as undo:
        for name in (switch, user, *nodes):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "name", "sw0", "type", "bridge")
        ip("-n", switch, "link", "set", "sw0", "up")
        for index, name in enumerate((user, *nodes)):
            ip(
                "-n",
                switch,
                "link",
                "add",
                f"p{index}",
                "type",
                "veth",
                "peer",
                "name",
                "nic0",
                "netns",
                name,
            )
            ip("-n", switch, "link", "set", f"p{index}", "master", "sw0", "up")
            ip("-n", name, "link", "set", "nic0", "up")
            device = "nic0"
            if name == user:
                # what a service's fixed neighbour entry for its gateway says
                ip("-n", name, "link", "set", "nic0", "address", mac_of(USER_ADDRESS))
            else:
                ip("-n", name, "link", "add", "wb0", "type", "bridge")
                # fixed, else it changes with the ports and the neighbours' entries for it go stale
                ip("-n", name, "link", "set", "wb0", "address", mac_of(f"10.78.0.{index}"), "up")
                ip("-n", name, "link", "set", "nic0", "master", "wb0")
                device = "wb0"
            address = f"10.78.0.{index}" if index else USER_ADDRESS
            ip("-n", name, "addr", "add", f"{address}/16", "dev", device)
        time.sleep(0.1)
        yield Net(user, nodes)


@pytest.fixture
def plain_service(net: Net) -> Iterator[Running]:
    """The demo service as a plain process on node 1, 4 MB, 500 pages/s dirtied."""
    argv = [*net.prefix(net.nodes[0]), sys.executable, service.__file__, "--memory-mb", "4"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"serving" in process.stdout.readline()
        yield Running(process.pid, "10.78.0.1", 4)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
