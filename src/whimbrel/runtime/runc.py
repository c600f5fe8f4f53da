"""runc as a subprocess, with its errors as one line each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import msgspec

from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.model.service import ExecResult


class ContainerState(msgspec.Struct, frozen=True, kw_only=True):
    """What `runc state` and `runc list` say. `status`: creating, created, running, paused or stopped."""

    id: str
    pid: int
    status: str
    bundle: str
    rootfs: str = ""


class InitProcess(msgspec.Struct, frozen=True):
    """The container's first process as runc recorded it; `start_ticks` tells it from a later one."""

    pid: int = msgspec.field(name="init_process_pid")
    start_ticks: int = msgspec.field(name="init_process_start")

    @property
    def alive(self) -> bool:
        return process_start_ticks(self.pid) == self.start_ticks


def process_start_ticks(pid: int) -> int | None:
    """Start time (clock ticks since boot) of a process that still runs; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the command's name may hold blanks and brackets
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Runc:
    """The containers below one runc root (`root` is its state folder, best on a tmpfs)."""

    def __init__(self, root: Path, *, program: str = "runc") -> None:
        self.root = root
        self._program = program

    async def create(self, name: str, bundle: Path, *, output_fd: int | None = None) -> int:
        """Make the container with its first process waiting; returns that process's id.

        Standard input is /dev/null; standard output and error are `output_fd` (/dev/null when None).
        """
        pid_file, log = bundle / "init.pid", bundle / "runc.log"
        log.unlink(missing_ok=True)
        sink = subprocess.DEVNULL if output_fd is None else output_fd
        # the container keeps runc's own output descriptors, so its complaints go to a file instead of a pipe
        process = await self._start(
            "--log", str(log), "--log-format", "json", "create",
            "--bundle", str(bundle), "--pid-file", str(pid_file), name, output=sink,
        )  # fmt: skip
        if await _finished(process):
            raise _error("create", name, log.read_bytes() if log.exists() else b"")
        log.unlink(missing_ok=True)
        return int(pid_file.read_text())

    async def start(self, name: str) -> None:
        await self._call("start", name, name=name)

    async def state(self, name: str) -> ContainerState:
        """Raises BadInput for a container that this runc root does not have."""
        return msgspec.json.decode(await self._call("state", name, name=name), type=ContainerState)

    async def list(self) -> tuple[ContainerState, ...]:
        answer = await self._call("list", "--format", "json")
        return msgspec.json.decode(answer, type=tuple[ContainerState, ...] | None) or ()

    async def exec(
        self, name: str, argv: tuple[str, ...], *, timeout_s: float = 60.0, max_bytes: int = 1 << 20
    ) -> ExecResult:
        """Run a command inside; its output is cut at `max_bytes` each. Raises Refused after `timeout_s`."""
        with tempfile.TemporaryDirectory(prefix="whimbrel-exec-") as folder:
            pid_file = Path(folder, "pid")
            process = await self._start("exec", "--pid-file", str(pid_file), name, *argv, output=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                async with asyncio.timeout(timeout_s):
                    out, err = await asyncio.gather(
                        _read_at_most(process.stdout, max_bytes), _read_at_most(process.stderr, max_bytes)
                    )
                    code = await process.wait()
            except TimeoutError as error:
                raise Refused(f"the command in {name} ran longer than {timeout_s:g} s: it was ended") from error
            finally:
                if process.returncode is None:
                    _end_exec(process, pid_file)
                    await process.wait()
        return ExecResult(exit_code=code, stdout=out.decode(errors="replace"), stderr=err.decode(errors="replace"))

    async def kill(self, name: str, number: int = signal.SIGTERM, *, all_processes: bool = False) -> None:
        flags = ["--all"] if all_processes else []
        await self._call("kill", *flags, name, str(int(number)), name=name)

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Forget the container; with `force` end it first, and one that does not exist is no error."""
        await self._call("delete", *(["--force"] if force else []), name, name=name)

    def init_process(self, name: str) -> InitProcess | None:
        """runc's record of the first process, read without starting runc; None when there is no container."""
        try:
            return msgspec.json.decode((self.root / name / "state.json").read_bytes(), type=InitProcess)
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def _call(self, *args: str, name: str = "") -> bytes:
        process = await self._start(*args, output=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
        if await _finished(process):
            raise _error(args[0], name, err)
        return out

    async def _start(self, *args: str, output: int) -> asyncio.subprocess.Process:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return await asyncio.create_subprocess_exec(
                self._program, "--root", str(self.root), *args,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise Refused(f"{self._program} is not installed: run `whimbrel check`") from error


def _end_exec(process: asyncio.subprocess.Process, pid_file: Path) -> None:
    """End the command itself, not only the runc that waits for it: that would leave it running inside."""
    try:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    except (OSError, ValueError):
        process.kill()


async def _finished(process: asyncio.subprocess.Process) -> int:
    """Its exit code. A cancelled caller waits too: what runc began must not go on behind the undo's back."""
    waiting = asyncio.ensure_future(process.wait())
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        await asyncio.wait([waiting])
        raise


async def _read_at_most(stream: asyncio.StreamReader, limit: int) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: limit - len(kept)]  # the rest is read too, else the command would block
    return bytes(kept)


def _error(command: str, name: str, output: bytes) -> WhimbrelError:
    """runc's last complaint as one line; a JSON log has one object a line, plain stderr one text line."""
    cause = "it gave no reason"
    for line in output.decode(errors="replace").splitlines():
        try:
            entry = msgspec.json.decode(line, type=dict[str, str])
        except (msgspec.DecodeError, msgspec.ValidationError):
            cause = line.strip() or cause
        else:
            if entry.get("level") in ("error", "fatal"):
                cause = entry.get("msg", cause)
    if "does not exist" in cause and name:
        return BadInput(f"there is no container {name} here")
    return WhimbrelError(f"runc {command} of {name} failed: {cause}" if name else f"runc {command} failed: {cause}")
