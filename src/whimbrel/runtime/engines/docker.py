"""Containers of Docker: read through its API, taken in by its own `create` and `start` with our wrapper as runtime.

What docker keeps of a container (name, image, command, labels, limits, restart policy, volumes …) is asked for again at
the destination; only the network is not: there the container has none but its port on the overlay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.model.service import ExecResult
from whimbrel.runtime.engines.base import Arrival, Guest, cgroup_of, has_own_cgroupns
from whimbrel.runtime.engines.docker_api import DockerApi
from whimbrel.runtime.engines.docker_rules import refuse_container, refuse_settings, settings_there
from whimbrel.runtime.engines.handover import WaitingRoom
from whimbrel.runtime.mounts import MountPlan, clone_mounts, plan_mounts, read_mounts
from whimbrel.runtime.moving import Departure, FileRoot, FileTarget, Landing
from whimbrel.runtime.runc import process_start_ticks

RUNTIME = "whimbrel"  # our wrapper's name among the daemon's runtimes
SETTLE_S = 30.0
EXEC_S = 60.0
MAX_OUTPUT_BYTES = 1 << 20
MAX_TEXT_BYTES = 1 << 20
_FOREIGN_OVERLAY = ("metacopy=on", "redirect_dir=on", "userxattr")


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A container as it crosses: docker's own settings, the mounts that CRIU will look for, and small files."""

    name: str
    image: str
    image_id: str
    config: dict[str, Any]
    host_config: dict[str, Any]
    plan: MountPlan
    volumes: dict[str, str]
    texts: dict[str, bytes]


class Docker:
    """The daemon behind one socket. What other engines with the same API do differently stands above the methods."""

    title = "Docker"
    setting = "docker_socket"
    texts: tuple[str, ...] = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    provided: tuple[str, ...] = ("/sbin/docker-init",)
    drivers: tuple[str, ...] = ("overlay2", "vfs")

    def __init__(self, socket: Path) -> None:
        self.api = DockerApi(socket, self.title, self.setting)
        self._starting: dict[str, asyncio.Task[Any]] = {}

    def refuse(self, facts: dict[str, Any]) -> None:
        """Raises Refused for a container that could never move."""
        refuse_container(facts, self.drivers)

    def host_settings(self, host: dict[str, Any]) -> dict[str, Any]:
        """How it is made at the destination."""
        return {**settings_there(host), "Runtime": RUNTIME}

    def refuse_daemon(self, info: dict[str, Any]) -> None:
        """Raises Refused for a destination's daemon that has no place for our wrapper."""
        if RUNTIME not in info["Runtimes"]:
            raise Refused(
                f"Docker at {self.api.socket} has no runtime {RUNTIME!r}: add it to its daemon.json (docs/engines.md)"
            )

    # --- source -------------------------------------------------------------------------------------------
    async def look(self, container: str) -> Guest:
        facts = await self._inspect(container)
        self.refuse(facts)
        info = await self.api.get("/info")
        if any("userns" in option or "rootless" in option for option in info.get("SecurityOptions") or ()):
            raise Refused(f"{self.title} maps user ids here (userns-remap or rootless), which CRIU cannot follow")
        return _guest(facts)

    async def leave(self, guest: Guest, clones: Path) -> Departure:
        facts = await self._inspect(guest.container)
        self.refuse(facts)
        volumes = await self._volumes(facts)
        mounts = await asyncio.to_thread(read_mounts, guest.pid)
        plan = plan_mounts(mounts, provided=self.provided, volumes=volumes, texts=self.texts)
        rootfs, files = await self._root(facts, mounts[0].super_options)
        shown = await asyncio.to_thread(clone_mounts, guest.pid, (*plan.carried, *plan.texts), clones)
        description = Description(
            name=facts["Name"].lstrip("/"),
            image=facts["Config"]["Image"],
            image_id=facts["Image"],
            config=facts["Config"],
            host_config=facts["HostConfig"],
            plan=plan,
            volumes=volumes,
            texts={point: _read_text(shown[point]) for point in plan.texts},
        )
        return Departure(
            rootfs=rootfs,
            files=(files, *(FileRoot(path=str(shown[point]), inside=point) for point in plan.carried)),
            external=tuple(f"mnt[{point}]:{point}" for point in plan.external),
            cgroup=guest.cgroup,
            description=msgspec.msgpack.encode(description),
        )

    async def _root(self, facts: dict[str, Any], mount_options: str) -> tuple[str, FileRoot]:
        """Where the container's files are, and which of them are its own."""
        if facts["Driver"] != "vfs":
            foreign = [option for option in _FOREIGN_OVERLAY if option in mount_options.split(",")]
            if foreign:
                raise Refused(f"its layer is mounted with {foreign[0]}, whose files mean nothing on another node")
            layers = facts["GraphDriver"]["Data"]
            return layers["MergedDir"], FileRoot(path=layers["UpperDir"])
        # vfs: a whole copy of the image beside the container's; which folder is whose stands in the layer store
        root = Path((await self.api.get("/info"))["DockerRootDir"])
        names = root / "image/vfs/layerdb/mounts" / facts["Id"]
        try:
            own, image = ((names / which).read_text().strip() for which in ("mount-id", "init-id"))
        except OSError as error:
            raise Refused(f"Docker's layer store at {names} is not laid out as known: {error.strerror}") from error
        folder = str(root / "vfs/dir" / own)
        return folder, FileRoot(path=folder, base=str(root / "vfs/dir" / image))

    async def _volumes(self, facts: dict[str, Any]) -> dict[str, str]:
        """Mount point -> name of the volumes that can follow: kept by docker itself, used by nobody else."""
        found = {}
        for mount in facts["Mounts"]:
            if mount["Type"] == "tmpfs":
                continue
            name = mount["Name"]
            volume = await self.api.get(f"/volumes/{name}")
            if mount.get("Driver") != "local" or volume.get("Options"):
                raise Refused(f"its volume {name} is kept by {mount.get('Driver')} with options: use a plain one")
            filters = msgspec.json.encode({"volume": [name]}).decode()
            users = await self.api.get("/containers/json", all=1, filters=filters)
            others = [user["Names"][0].lstrip("/") for user in users if user["Id"] != facts["Id"]]
            if others:
                raise Refused(f"its volume {name} is used by {', '.join(others)} too: a shared volume cannot move")
            found[mount["Destination"]] = name
        return found

    async def end(self, container: str) -> bytes:
        output = await self.api.output(container)
        with contextlib.suppress(WhimbrelError):  # already being removed
            policy = {"RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}}
            await self.api.call("POST", f"/containers/{container}/update", None, policy)
        return output

    # --- destination --------------------------------------------------------------------------------------
    async def answers(self) -> None:
        await self.api.get("/version")

    async def offer(self, description: bytes) -> None:
        wanted = msgspec.msgpack.decode(description, type=Description)
        refuse_settings(wanted.config, wanted.host_config)
        self.refuse_daemon(await self.api.get("/info"))
        if await self._exists(f"/containers/{wanted.name}/json"):
            raise Refused(f"{self.title} has a container {wanted.name} there already: remove or rename it")
        for name in _named(wanted):
            if await self._exists(f"/volumes/{name}"):
                raise Refused(f"{self.title} has a volume {name} there already: remove it (`volume rm {name}`)")

    async def has_image(self, description: bytes) -> bool:
        return bool(await self._reference(msgspec.msgpack.decode(description, type=Description)))

    async def image_out(self, description: bytes) -> AsyncIterator[bytes]:
        wanted = msgspec.msgpack.decode(description, type=Description)
        async for piece in self.api.download(f"/images/{await self._image(wanted)}/get"):
            yield piece

    async def image_in(self, description: bytes, pieces: AsyncIterator[bytes]) -> None:
        await self.api.upload("/images/load", pieces)
        await self._image(msgspec.msgpack.decode(description, type=Description))

    async def _image(self, wanted: Description) -> str:
        """`_reference`; raises Refused when there is none."""
        if reference := await self._reference(wanted):
            return reference
        raise Refused(
            f"{self.title} has no image {wanted.image} ({wanted.image_id[:19]}) there: pull it, or carry it with "
            "`save` and `load`"
        )

    async def _reference(self, wanted: Description) -> str:
        """The same image under its name, or by its digest; empty when it is not there."""
        for reference in (wanted.image, wanted.image_id):
            with contextlib.suppress(BadInput):
                if (await self.api.get(f"/images/{reference}/json"))["Id"] == wanted.image_id:
                    return reference
        return ""

    async def prepare(self, description: bytes, clones: Path, made: Callable[[str], None]) -> Arrival:
        await self.offer(description)
        wanted = msgspec.msgpack.decode(description, type=Description)
        config = {key: value for key, value in wanted.config.items() if key != "MacAddress"}
        body = {**config, "Image": await self._image(wanted), "HostConfig": self.host_settings(wanted.host_config)}
        answer = await self.api.call("POST", "/containers/create", {"name": wanted.name}, body)
        container = str(answer["Id"])
        made(container)
        return await self._start(container, wanted, clones)

    async def _start(self, container: str, wanted: Description, clones: Path) -> Arrival:
        """Up to the moment when the wrapper waits. The start itself ends when the restored container runs; until then
        docker keeps the container locked and answers no question about it."""
        facts = await self._inspect(container)
        async with WaitingRoom(container) as room:
            start = asyncio.create_task(
                self.api.call("POST", f"/containers/{container}/start", timeout_s=None), name=f"start {wanted.name}"
            )
            self._starting[container] = start
            hello, connection = await room.arrival(start)
        try:
            shown = await asyncio.to_thread(clone_mounts, hello.placeholder, wanted.plan.external, clones)
            filled = {point: str(shown[point]) for point in wanted.plan.carried}
            # a volume may be read-only in there, but not where docker keeps it
            filled |= {mount["Destination"]: mount["Source"] for mount in facts["Mounts"] if mount["Type"] == "volume"}
            await asyncio.to_thread(_fill, wanted, shown, filled)
            bundle = msgspec.json.decode(Path(hello.bundle, "config.json").read_bytes())
        except BaseException:
            connection.close()
            raise
        landing = Landing(
            rootfs=bundle["root"]["path"],
            files=(
                FileTarget(path=bundle["root"]["path"], merged=True),
                *(FileTarget(path=filled[point]) for point in wanted.plan.carried),
            ),
            external=tuple(f"mnt[{point}]:{shown[point]}" for point in wanted.plan.external),
            cgroup=cgroup_of(hello.placeholder),
            own_cgroupns=has_own_cgroupns(hello.placeholder),
            runc_root=hello.root,
            runc_id=container,
            pid_file=hello.pid_file,
            foreign=True,
        )
        return Arrival(container, landing, connection, netns_pid=hello.placeholder)

    async def settled(self, container: str) -> Guest:
        try:
            async with asyncio.timeout(SETTLE_S):
                while True:
                    facts = await self._inspect(container)
                    if facts["State"]["Running"]:
                        return _guest(facts)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise WhimbrelError(
                f"{self.title} did not take the restored container {container[:12]} for running"
            ) from None
        finally:
            self._starting.pop(container, None)

    # --- either -------------------------------------------------------------------------------------------
    async def remove(self, container: str, *, with_volumes: bool) -> None:
        start = self._starting.pop(container, None)
        if start is not None:  # it fails as soon as the wrapper has nobody to wait for
            await asyncio.wait([start])
            start.exception()
        volumes: list[str] = []
        with contextlib.suppress(BadInput):
            if with_volumes:
                facts = await self._inspect(container)
                volumes = [mount["Name"] for mount in facts["Mounts"] if mount["Type"] == "volume"]
            await self.delete(container)
        for name in volumes:
            with contextlib.suppress(BadInput):
                await self.api.call("DELETE", f"/volumes/{name}")

    async def delete(self, container: str) -> None:
        """Raises BadInput as soon as there is no such container; one that removes itself (``--rm``) is waited for."""
        try:
            await self.api.call("DELETE", f"/containers/{container}", {"force": 1, "v": 1})
        except Refused as error:
            if "already in progress" not in str(error):
                raise
            async with asyncio.timeout(SETTLE_S):
                while True:
                    await self._inspect(container)
                    await asyncio.sleep(0.05)

    async def exec(self, container: str, argv: tuple[str, ...]) -> ExecResult:
        return await self.api.exec(container, argv, timeout_s=EXEC_S, max_bytes=MAX_OUTPUT_BYTES)

    async def output(self, container: str, tail_bytes: int) -> bytes:
        return (await self.api.output(container))[-tail_bytes:]

    async def _inspect(self, container: str) -> dict[str, Any]:
        if not container or "/" in container:
            raise BadInput(f"{container!r} is no name of a container")
        facts: dict[str, Any] = await self.api.get(f"/containers/{container}/json")
        return facts

    async def _exists(self, path: str) -> bool:
        try:
            await self.api.get(path)
        except BadInput:
            return False
        return True


def _guest(facts: dict[str, Any]) -> Guest:
    pid = int(facts["State"]["Pid"])
    start_ticks = process_start_ticks(pid)
    if start_ticks is None:
        raise Refused(f"container {facts['Name'].lstrip('/')} has just ended")
    return Guest(
        container=facts["Id"],
        pid=pid,
        start_ticks=start_ticks,
        cgroup=cgroup_of(pid),
        image=facts["Config"]["Image"],
        image_digest=facts["Image"],
    )


def _named(wanted: Description) -> list[str]:
    """Volumes that docker would look up by name; for the others it makes new ones."""
    asked = [str(bind).split(":")[0] for bind in wanted.host_config.get("Binds") or ()]
    asked += [str(mount.get("Source") or "") for mount in wanted.host_config.get("Mounts") or ()]
    return [name for name in wanted.volumes.values() if name in asked]


def _read_text(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise Refused(f"{path} is larger than such a file should be")
    return content


def _fill(wanted: Description, shown: dict[str, Path], filled: dict[str, str]) -> None:
    """Bring the container's own small files to what they were, and empty what will be filled while it moves: docker
    puts into a new volume what the image has there."""
    for point in wanted.plan.texts:
        shown[point].write_bytes(wanted.texts[point])
    points = wanted.plan.external
    for point in wanted.plan.carried:
        if any(other.startswith(f"{point}/") for other in points) or point == "/dev":
            continue  # holds mount points, and what docker puts there is the same everywhere
        for entry in os.scandir(filled[point]):
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
