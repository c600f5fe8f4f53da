"""System containers of LXC: read through its commands, taken in by `lxc-checkpoint -r` with our wrapper as its CRIU.

There is no image: the whole root file system crosses. LXC makes the control groups and the monitor. Their limits, which
LXC leaves to CRIU in a restore, and mounts that CRIU does not carry are made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.model.service import ExecResult
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines import commands
from whimbrel.runtime.engines.base import Arrival, EngineAway, Guest, cgroup_of, has_own_cgroupns
from whimbrel.runtime.engines.handover import WaitingRoom
from whimbrel.runtime.engines.wrapper import ARRIVAL, REAL_CRIU
from whimbrel.runtime.limits import apply_limits, read_limits
from whimbrel.runtime.mounts import MountPlan, clone_mounts, drop_clones, plan_mounts, read_mounts
from whimbrel.runtime.moving import Departure, FileRoot, FileTarget, Landing
from whimbrel.runtime.runc import process_start_ticks

SETTLE_S = 20.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAMED = re.compile(r"(State|PID|lxc\.[a-z0-9._]+)(?::| =)(.*)")
_OURS = re.compile(r"\s*lxc\.(rootfs\.path|net|network|log)\b")  # of its settings, what another node decides
_OF_THE_HOST = ("/sys/", "/proc/", "/dev/")  # the same on every node
_TMPFS_OPTIONS = re.compile(r"(?:size|mode|uid|gid|nr_inodes)=[0-9a-z]+")


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A container as it crosses: its settings, the mounts that CRIU will look for, and how to make them."""

    name: str
    settings: str
    version: str
    plan: MountPlan
    tmpfs: dict[str, str]
    provided: dict[str, str]
    own_cgroupns: bool
    limits: dict[str, str]


class Lxc:
    """The containers below one folder (`path`); `scratch` holds what LXC wants to be given at a restore."""

    def __init__(self, path: Path, scratch: Path, criu: str) -> None:
        self.path, self._scratch, self._criu = path, scratch, criu

    async def _call(self, program: str, name: str, *arguments: str) -> str:
        done = await commands.run([program, "-P", str(self.path), "-n", name, *arguments])
        if done.exit_code:
            cause = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it gave no reason"]
            raise Refused(f"{program} -n {name}: {cause[0]}")
        return done.stdout

    async def _settings(self, name: str, *keys: str) -> dict[str, list[str]]:
        """What LXC says of a container, a list for each key; `State` and `PID` too."""
        queries = [word for key in keys for word in ("-c", key)]
        return _lists(await self._call("lxc-info", name, "-s", "-p", "-H", *queries))

    async def answers(self) -> None:
        """There is no daemon: its programs and its folder."""
        await commands.run(["lxc-info", "--version"])
        if not self.path.is_dir():
            raise EngineAway(f"LXC has no folder {self.path}: make it, or name another as `lxc_path` in agent.toml")

    # --- source -------------------------------------------------------------------------------------------
    async def look(self, container: str) -> Guest:
        if not _NAME.fullmatch(container) or not (self.path / container / "config").exists():
            raise BadInput(f"LXC has no container {container!r} in {self.path}")
        await self._refuse(container)
        return await self._guest(container)

    async def _guest(self, name: str) -> Guest:
        facts = await self._settings(name)
        if facts.get("State", ["STOPPED"])[0] != "RUNNING":
            raise Refused(f"container {name} is {facts.get('State', ['gone'])[0].lower()}: only a running one can move")
        pid = int(facts["PID"][0])
        start_ticks = process_start_ticks(pid)
        if start_ticks is None:
            raise Refused(f"container {name} has just ended")
        return Guest(container=name, pid=pid, start_ticks=start_ticks, cgroup=cgroup_of(pid), image=name)

    async def _refuse(self, name: str) -> None:
        facts = await self._settings(
            name,
            "lxc.rootfs.path",
            "lxc.console.path",
            "lxc.tty.max",
            "lxc.idmap",
            "lxc.mount.fstab",
            "lxc.net",
            "lxc.mount.entry",
        )
        root = facts.get("lxc.rootfs.path", [""])[0]
        folder = root.removeprefix("dir:")
        for found, reason in (
            (not folder.startswith("/") or not Path(folder).is_dir(), f"keeps its files as {root}: use a plain folder"),
            (facts.get("lxc.console.path") != ["none"], "has a console: set `lxc.console.path = none`"),
            (facts.get("lxc.tty.max", ["0"]) != ["0"], "has terminals: set `lxc.tty.max = 0`"),
            (facts.get("lxc.idmap"), "maps user ids, which CRIU cannot follow: remove lxc.idmap"),
            (facts.get("lxc.mount.fstab"), "has a list of mounts of its own: use lxc.mount.entry"),
            ("none" in facts.get("lxc.net", []), "lives in the network of the host: set `lxc.net.0.type = empty`"),
        ):
            if found:
                raise Refused(f"container {name} {reason}")
        _provided(facts.get("lxc.mount.entry", []))

    async def leave(self, guest: Guest, clones: Path) -> Departure:
        name = guest.container
        await self._refuse(name)
        facts = await self._settings(name, "lxc.rootfs.path", "lxc.mount.entry")
        provided = _provided(facts.get("lxc.mount.entry", []))
        mounts = await asyncio.to_thread(read_mounts, guest.pid)
        plan = plan_mounts(mounts, provided=provided)
        unknown = [point for point in plan.provided if point not in provided]
        if unknown:
            raise Refused(f"{unknown[0]} is mounted in it, which this side cannot make at another node: unmount it")
        by_point = {mount.point: mount for mount in mounts}
        settings = (self.path / name / "config").read_text()
        shown = await asyncio.to_thread(clone_mounts, guest.pid, plan.carried, clones)
        rootfs = facts["lxc.rootfs.path"][0].removeprefix("dir:")
        description = Description(
            name=name,
            settings="".join(f"{line}\n" for line in settings.splitlines() if not _OURS.match(line)),
            version=await self._version(),
            plan=plan,
            tmpfs={
                point: _mount_options(by_point[point].options, by_point[point].super_options) for point in plan.carried
            },
            provided={point: source for point, source in provided.items() if point in plan.provided},
            own_cgroupns=has_own_cgroupns(guest.pid),
            limits=read_limits(Cgroup(guest.cgroup)),
        )
        return Departure(
            rootfs=rootfs,
            files=(
                FileRoot(path=rootfs),
                *(FileRoot(path=str(shown[point]), inside=point) for point in plan.carried),
            ),
            external=tuple(f"mnt[{point}]:{point}" for point in plan.external),
            cgroup=guest.cgroup,
            description=msgspec.msgpack.encode(description),
        )

    async def end(self, container: str) -> bytes:
        """LXC starts nothing again by itself, and keeps no output of a container without a console."""
        return b""

    # --- destination --------------------------------------------------------------------------------------
    async def _version(self) -> str:
        return (await commands.run(["lxc-info", "--version"])).stdout.strip()

    async def offer(self, description: bytes) -> None:
        wanted = _decoded(description)
        version = await self._version()
        if version != wanted.version:
            raise Refused(f"LXC differs: {wanted.version} here, {version} there; install the same version on both")
        if (self.path / wanted.name).exists():
            raise Refused(f"LXC has a container {wanted.name} there already: remove or rename it")
        for source in wanted.provided.values():
            if not source.startswith(_OF_THE_HOST) or ".." in source.split("/") or not Path(source).exists():
                raise Refused(f"{source} of the host is mounted in it, which is not there")

    async def has_image(self, description: bytes) -> bool:
        return True  # there is none: the whole system crosses

    def image_out(self, description: bytes) -> AsyncIterator[bytes]:
        raise Refused("a system container of LXC has no image")

    async def image_in(self, description: bytes, pieces: AsyncIterator[bytes]) -> None:
        raise Refused("a system container of LXC has no image")

    async def prepare(self, description: bytes, clones: Path, made: Callable[[str], None]) -> Arrival:
        await self.offer(description)
        wanted = _decoded(description)
        made(wanted.name)
        rootfs = self.path / wanted.name / "rootfs"
        rootfs.mkdir(mode=0o755, parents=True)
        settings = f"{wanted.settings}lxc.rootfs.path = dir:{rootfs}\nlxc.net.0.type = empty\n"
        (self.path / wanted.name / "config").write_text(settings)
        shown = await asyncio.to_thread(_make_mounts, wanted, clones)
        connection, cgroup = await self._start(wanted.name)
        try:
            await asyncio.to_thread(apply_limits, Cgroup(cgroup), wanted.limits)
        except BaseException:
            connection.close()
            raise
        landing = Landing(
            rootfs=str(rootfs),
            files=(
                FileTarget(path=str(rootfs)),
                *(FileTarget(path=str(shown[point])) for point in wanted.plan.carried),
            ),
            external=tuple(f"mnt[{point}]:{shown[point]}" for point in wanted.plan.external),
            cgroup=cgroup,
            own_cgroupns=wanted.own_cgroupns,
            foreign=True,
        )
        return Arrival(wanted.name, landing, connection)

    async def _start(self, name: str) -> tuple[socket.socket, str]:
        """Let LXC restore: it makes monitor and control groups, and starts the wrapper as its CRIU."""
        folder = self._scratch / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_criu(self._scratch / "bin")
        async with WaitingRoom(f"lxc-{name}-{secrets.token_hex(4)}") as room:
            environment = {
                **os.environ,
                "PATH": f"{self._scratch / 'bin'}:{os.environ.get('PATH', os.defpath)}",
                ARRIVAL: str(room.path),
                REAL_CRIU: self._criu,
            }
            log = folder / "restore.log"
            # not piped: the monitor keeps what it gets, long after the restore
            restore = await asyncio.create_subprocess_exec(
                "lxc-checkpoint", "-P", str(self.path), "-n", name, "-r", "-D", str(folder), "-o", str(log),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=environment, cwd="/", start_new_session=True,
            )  # fmt: skip
            hello, connection = await room.arrival(asyncio.create_task(_end_of(restore, name, log)))
        try:
            return connection, _cgroup_root(hello.arguments)
        except BaseException:
            connection.close()
            raise

    async def settled(self, container: str) -> Guest:
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            try:
                guest = await self._guest(container)
                break
            except Refused as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise WhimbrelError(f"LXC did not take the restored {container} for running: {error}") from error
                await asyncio.sleep(0.05)
        shutil.rmtree(self._scratch / container, ignore_errors=True)
        return guest

    # --- either -------------------------------------------------------------------------------------------
    async def remove(self, container: str, *, with_volumes: bool) -> None:
        if not _NAME.fullmatch(container) or not (self.path / container).exists():
            return
        with contextlib.suppress(Refused):  # it does not run
            await self._call("lxc-stop", container, "-k")
        with contextlib.suppress(Refused):
            await self._call("lxc-destroy", container, "-f")
        shutil.rmtree(self.path / container, ignore_errors=True)  # half-made
        shutil.rmtree(self._scratch / container, ignore_errors=True)

    async def exec(self, container: str, argv: tuple[str, ...]) -> ExecResult:
        ours = ["--clear-env", "--set-var", f"PATH={_PATH}"]  # nothing of the agent's environment gets in
        return await commands.run(["lxc-attach", "-P", str(self.path), "-n", container, *ours, "--", *argv])

    async def output(self, container: str, tail_bytes: int) -> bytes:
        return b""


def _lists(answer: str) -> dict[str, list[str]]:
    """``lxc-info``'s answer: a setting with several values goes on over lines without its name."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in answer.splitlines():
        named = _NAMED.fullmatch(line)
        key, value = (named[1], named[2]) if named else (key, line)
        if value.strip():
            found.setdefault(key, []).append(value.strip())
    return found


def _decoded(description: bytes) -> Description:
    wanted = msgspec.msgpack.decode(description, type=Description)
    if not _NAME.fullmatch(wanted.name) or wanted.name in (".", ".."):
        raise BadInput(f"{wanted.name!r} is no name of a container")
    return wanted


def _provided(entries: list[str]) -> dict[str, str]:
    """Mount point -> folder of the host, of the container's own bind mounts. Raises Refused for one that stays."""
    found = {}
    for entry in entries:
        source, point, _, options, *_ = entry.split()
        if "bind" in options.split(",") or "rbind" in options.split(","):
            if not source.startswith(_OF_THE_HOST):
                raise Refused(f"{source} of the host is mounted in it, which stays behind: put the files into it")
            found[f"/{point.lstrip('/')}"] = source
    return found


def _mount_options(options: str, super_options: str) -> str:
    """A tmpfs like that one, as `mount -o` wants it."""
    flags = [flag for flag in options.split(",") if flag in ("nosuid", "nodev", "noexec")]
    return ",".join([*flags, *(word for word in super_options.split(",") if _TMPFS_OPTIONS.fullmatch(word))])


def _make_mounts(wanted: Description, clones: Path) -> dict[str, Path]:
    drop_clones(clones)
    clones.mkdir(mode=0o700, parents=True)
    shown: dict[str, Path] = {}
    for number, point in enumerate(wanted.plan.external):
        target, source = clones / str(number), wanted.provided.get(point)
        if source is None:
            if not all(_TMPFS_OPTIONS.fullmatch(word) or word.isalpha() for word in wanted.tmpfs[point].split(",")):
                raise BadInput(f"{wanted.tmpfs[point]!r} are no options of a tmpfs")
            target.mkdir()
            argv = ["mount", "-t", "tmpfs", "-o", wanted.tmpfs[point], "whimbrel", str(target)]
        else:
            target.mkdir() if Path(source).is_dir() else target.touch()
            argv = ["mount", "--bind", source, str(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WhimbrelError(f"cannot make the mount for {point}: {done.stderr.strip()}")
        shown[point] = target
    return shown


def _write_criu(folder: Path) -> None:
    """The `criu` that LXC finds: our wrapper, which passes everything else to the real one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    program = folder / "criu"
    script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m whimbrel.runtime.engines.wrapper criu "$@"\n'
    if not program.exists() or program.read_text() != script:
        program.write_text(script)
        program.chmod(0o755)


def _cgroup_root(arguments: tuple[str, ...]) -> str:
    """The control group that LXC made, out of the words it has for CRIU (``--cgroup-root cpu:/lxc.payload.NAME``)."""
    paths = {
        arguments[number + 1].rpartition(":")[2]
        for number, word in enumerate(arguments[:-1])
        if word == "--cgroup-root"
    }
    if len(paths) != 1:
        raise Refused(f"LXC has made the control groups {', '.join(sorted(paths)) or 'none'}: one path was expected")
    return paths.pop()


async def _end_of(restore: asyncio.subprocess.Process, name: str, log: Path) -> None:
    if await restore.wait():
        raise Refused(f"LXC does not restore {name}: {_last_error(log)}")


def _last_error(log: Path) -> str:
    with contextlib.suppress(OSError):
        errors = [line for line in log.read_text(errors="replace").splitlines() if " ERROR " in line]
        if errors:
            return errors[-1].rpartition(" - ")[2]
    return "see its log"
