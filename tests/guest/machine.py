"""A running guest: booted from a throw-away layer over the cached disk, spoken to through a virtio port."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guest.image import REPO, Image

MEMORY_MB = 2048
BOOT_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
# How long a command may take beyond its own limit until the guest itself counts as gone.
GRACE_S = 60.0
SENT = ("src", "tests", "scripts", "pyproject.toml")
KERNEL_COMMAND_LINE = (
    "root=/dev/vda rw init=/usr/local/sbin/guest-init console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable "
    "net.ifnames=0 "
    # A huge page has one soft-dirty bit for its 2 MB: of a memory written here and there, each round would find all.
    "transparent_hugepage=madvise"
)


@dataclass(frozen=True)
class Done:
    """`code` -1: it was stopped when its time was over."""

    code: int
    output: str


class GuestFailed(Exception):
    """The guest does not boot, or went away; the message ends with what it said last."""


class Guest:
    """Boots at once; `close` ends it. The project lies in /whimbrel, images of workloads where they are looked for."""

    def __init__(self, image: Image, folder: Path, images: Sequence[Path] = ()) -> None:
        self._console = folder / "console.log"
        _pack(folder / "project.tar", images)
        listener = socket.socket(socket.AF_UNIX)
        port = folder / "port"
        listener.bind(str(port))
        listener.listen()
        listener.settimeout(BOOT_TIMEOUT_S)
        argv = [
            "nice", "-n", "1", *image.qemu, "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1",
            "-m", str(MEMORY_MB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL_COMMAND_LINE,
            "-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-drive", f"file={folder / 'project.tar'},format=raw,if=virtio,readonly=on",
            "-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
            "-serial", f"file:{self._console}",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,path={port},id=port", "-device", "virtserialport,chardev=port,name=whimbrel",
        ]  # fmt: skip
        self._complaints = folder / "qemu.log"
        with self._complaints.open("wb") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(folder)}
            )
        try:
            with listener:
                self._port = self._accept(listener)
            self._pending = b""
            self._answer(BOOT_TIMEOUT_S)
            self.check(["tar", "-C", "/", "-xf", "/dev/vdb"], timeout_s=120)
        except BaseException:
            self._end()
            raise

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        """Run a command as root in /whimbrel. Raises GuestFailed when the guest is gone."""
        order = {"argv": ["env", "-C", "/whimbrel", *argv], "timeout_s": timeout_s}
        try:
            self._port.sendall(json.dumps(order).encode() + b"\n")
        except OSError as error:
            raise self._failed(str(error)) from error
        return self._answer(timeout_s + GRACE_S)

    def check(self, argv: Sequence[str], *, timeout_s: float) -> str:
        """The same; raises GuestFailed, too, when the command fails."""
        done = self.run(argv, timeout_s=timeout_s)
        if done.code != 0:
            raise self._failed(f"{' '.join(argv)}: {done.code}: {done.output}")
        return done.output

    def close(self) -> None:
        """Let it power off, and end it if it does not."""
        try:
            self._port.sendall(b'{"stop": true}\n')
            self._process.wait(STOP_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self._port.close()
        self._end()

    def _accept(self, listener: socket.socket) -> socket.socket:
        """QEMU itself connects, as soon as it runs."""
        listener.settimeout(0.2)
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    raise self._failed("QEMU has ended") from None

    def _answer(self, timeout_s: float) -> Done:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            self._port.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._port.recv(1 << 16)
            except TimeoutError:
                raise self._failed(f"it did not answer for {timeout_s:.0f} s") from None
            if not data:
                raise self._failed("it is gone")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer = json.loads(line)
        return Done(code=answer["code"], output=answer["output"])

    def _failed(self, what: str) -> GuestFailed:
        said = [path.read_text(errors="replace")[-3000:] for path in (self._complaints, self._console) if path.exists()]
        return GuestFailed("\n".join([f"guest: {what}", *said]))

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


def _pack(archive: Path, images: Sequence[Path]) -> None:
    """The project as it lies here, committed or not, and folders that go to the same place in the guest."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if entry.name.endswith(("__pycache__", ".pyc")) else entry

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in SENT:
            tar.add(REPO / name, f"whimbrel/{name}", filter=wanted)
        for path in images:
            tar.add(path, str(path).lstrip("/"))
    with archive.open("ab") as file:  # a disk has whole sectors
        file.write(bytes(-file.tell() % io.DEFAULT_BUFFER_SIZE))
