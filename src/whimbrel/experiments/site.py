"""The lab of an experiment: two edge nodes, a gateway and a user, apart from any other lab of this host; with a storage
server that both edges mount, where that is wanted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whimbrel.bench.trial import inside
from whimbrel.controller.client import ControllerClient
from whimbrel.experiments import links
from whimbrel.experiments.model import Link
from whimbrel.lab.commands import LabStatus, Report
from whimbrel.lab.config import shared_directory
from whimbrel.lab.session import lab_session
from whimbrel.storage.shared.marker import FOLDER

DEFAULT_PREFIX = "xp"
TOPOLOGY = """name = "experiment"
prefix = "{prefix}-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
[[edges]]
name = "{prefix}-1"
subnet = "192.168.101.0/24"
[[edges]]
name = "{prefix}-2"
subnet = "192.168.102.0/24"
[[gateways]]
name = "{prefix}-gw"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
[[users]]
name = "{prefix}-ue"
attached = ["{prefix}-gw"]
"""
STORAGE = """[storage]
name = "{prefix}-nfs"
subnet = "192.168.120.0/24"
"""


@dataclass(frozen=True)
class Place:
    """Where a lab of experiments goes: `prefix` is the beginning of all its names, two letters are enough."""

    prefix: str = DEFAULT_PREFIX
    lab_dir: Path = Path("/var/lib/whimbrel/experiment")


@dataclass(frozen=True)
class Site:
    """A lab that is up."""

    status: LabStatus
    controller: ControllerClient

    @property
    def edges(self) -> list[str]:
        return [node.name for node in self.status.nodes if node.role == "edge"]

    @property
    def gateway(self) -> str:
        """Its address on the overlay."""
        return next(node.overlay_address for node in self.status.nodes if node.role == "gateway")

    @property
    def user(self) -> tuple[str, ...]:
        """The command prefix that puts a program where the user is."""
        return inside(next(node.namespace for node in self.status.nodes if node.role == "user"))

    @property
    def underlay(self) -> dict[str, tuple[str, Path]]:
        """Edge name -> (address, path of its network namespace)."""
        nodes = [node for node in self.status.nodes if node.role == "edge"]
        return {node.name: (node.address, Path("/run/netns", node.namespace)) for node in nodes}

    def shared(self, edge: str) -> Path:
        """Where an edge mounts the storage server's file system, if there is one."""
        return shared_directory(Path(self.status.directory), edge)

    @property
    def exported(self) -> Path:
        """What the edges mount, on the storage server itself."""
        server = next(node.name for node in self.status.nodes if node.role == "storage")
        return Path(self.status.directory, server, "data")

    def root(self, edge: str, service: str, *, shared: bool) -> Path:
        """A running service's root file system, where it can be written to: of a shared one on the server itself."""
        if shared:
            return self.exported / FOLDER / "services" / service / "root"
        return self.folder(edge) / "services" / service / "rootfs"

    def folder(self, node: str) -> Path:
        """The state folder of a node's agent."""
        return Path(self.status.directory, node)


@contextlib.contextmanager
def in_memory(directory: Path) -> Iterator[None]:
    """A tmpfs at `directory`, as the scripts have one for their nodes' folders: a disk's file system may need ten times
    as long for the same 18,000 files, when such a tree has just been removed there (ext4 without a journal)."""
    directory.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(directory):  # left by a run that was killed
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%,mode=0700", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        if os.path.ismount(directory):
            subprocess.run(["umount", "--lazy", str(directory)], check=False)


@contextlib.contextmanager
def site(place: Place, link: Link, tell: Report, *, storage: bool = False) -> Iterator[Site]:
    """Bring the lab up with shaped links; it goes down with the block, however that ends."""
    with in_memory(place.lab_dir), tempfile.TemporaryDirectory(prefix="whimbrel-experiment-") as folder:
        topology = Path(folder, "topology.toml")
        topology.write_text((TOPOLOGY + STORAGE if storage else TOPOLOGY).format(prefix=place.prefix))
        with lab_session(tell, topology=topology, lab_dir=place.lab_dir) as status:
            links.shape(status, link)
            with ControllerClient(status.controller) as controller:
                yield Site(status, controller)
