"""A root file system out of the host's own programs, and one container in a namespace, for tests."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from whimbrel.model.service import ServiceSpec
from whimbrel.model.volume import parse_volumes
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.logger import open_log
from whimbrel.runtime.runc import Runc
from whimbrel.runtime.spec import build_spec, cgroup_path
from whimbrel.storage.images import Image, ImageStore
from whimbrel.storage.layer import Layer

PROGRAMS = ("sh", "cat", "id", "ls", "mkdir", "mv", "rm", "sleep", "stat")


def tiny_rootfs(root: Path) -> Path:
    """A few programs and the libraries they are linked to."""
    wanted = {shutil.which(name) for name in PROGRAMS}
    for program in sorted(filter(None, wanted)):
        place = root / "bin" / Path(program).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(program, place)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            copy = root / library.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    for name in ("dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return root


@dataclass
class Node:
    """Stand-in for one node: its own state folder, runc root and network namespace."""

    name: str
    folder: Path
    image: Image
    netns: Path

    def __post_init__(self) -> None:
        self.runc = Runc(self.folder / "runc")

    def layer(self, service: str) -> Layer:
        return Layer(self.folder / "services" / service)

    def cgroup(self, service: str) -> Cgroup:
        return Cgroup(cgroup_path(self.name, service))

    def volumes(self, spec: ServiceSpec) -> dict[str, Path]:
        """A folder for each volume, by the path where the container sees it."""
        found = {volume.path: self.folder / "volumes" / volume.name for volume in parse_volumes(spec.volumes)}
        for folder in found.values():
            folder.mkdir(parents=True, exist_ok=True)
        return found

    async def create(self, spec: ServiceSpec, *, output: bool = True) -> int:
        """Mount, describe, `runc create`; returns the waiting process."""
        folder = self.folder / "services" / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        layer = self.layer(spec.name)
        layer.mount(self.image.rootfs)
        config = build_spec(
            spec,
            self.image,
            rootfs=layer.rootfs,
            shm=layer.shm,
            netns=self.netns,
            cgroup=self.cgroup(spec.name).path,
            volumes=self.volumes(spec),
        )
        (folder / "config.json").write_bytes(config)
        pipe = open_log(folder / "logs", self.name) if output else None
        try:
            return await self.runc.create(spec.name, folder, output_fd=pipe)
        finally:
            if pipe is not None:
                os.close(pipe)

    async def remove(self, service: str) -> None:
        self.cgroup(service).kill_all()
        await self.runc.delete(service, force=True)
        self.layer(service).remove()
        self.cgroup(service).remove(with_parents=True)


def make_image(tmp_path: Path) -> Image:
    return ImageStore(tmp_path / "images").ensure(f"rootfs:{tiny_rootfs(tmp_path / 'tiny')}")


def shell(name: str, script: str, **more: object) -> ServiceSpec:
    return ServiceSpec(name=name, image="rootfs:/", address="10.77.9.9/16", args=("/bin/sh", "-c", script), **more)  # type: ignore[arg-type]


async def until(condition: object, *, timeout_s: float = 30.0) -> None:
    """Wait for a condition that another process brings about; fails after the time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)
