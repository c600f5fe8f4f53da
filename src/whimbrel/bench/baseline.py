"""What one would do without Whimbrel: `runc checkpoint`, copy the images, `runc restore`.

It is given the best conditions that this way allows, so that the comparison is about the way and not about
details: images on a tmpfs at both ends, CRIU's feature cache on a tmpfs, `--tcp-established`, a copy by `tar`
straight into a TCP socket between the nodes, the root file system already at the destination, the network
port there made ahead; ports and announcement are Whimbrel's own code.

The destination's port opens before the restore (ARP is silenced until it is done, so that nobody sends there
yet): the first answer of the restored service then passes and leads the network to the new place. With the
port opened after the restore that answer would be lost, and TCP would wait 1 s for its repetition. Nothing is
held at the gateway: packets of the gap are dropped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from whimbrel.bench.report import BASELINE
from whimbrel.checkpoint.swrk import criu_path
from whimbrel.model.errors import BadInput, StepFailed
from whimbrel.model.migration import MigrationRecord, Outcome, Phase
from whimbrel.network import netns
from whimbrel.network.port import ServicePort
from whimbrel.runtime.spec import CAPABILITIES

NAME = "baseline"
CGROUP = "whimbrel-baseline"
OPTIONS = ("--tcp-established", "--file-locks")
PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Program:
    """What the container runs. `image` is an OCI layout with its tag (``PATH:TAG``)."""

    image: str
    argv: Sequence[str]
    env: Sequence[str] = ()
    workdir: str = "/"


def run(*argv: str, env: Mapping[str, str] | None = None, **options: Any) -> str:
    """Run a command; raises StepFailed with its last words."""
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, **options)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise StepFailed(f"{' '.join(argv[:4])}… failed: {words[-1] if words else 'it gave no reason'}")
    return str(done.stdout)


class Node:
    """One place: a thread in its network namespace, its port, its bundle and its image folder. `host` is the
    address under which the other nodes reach it."""

    def __init__(self, name: str, host: str, namespace: Path, scratch: Path) -> None:
        self.name, self.host = name, host
        self._shared = scratch
        self.scratch = scratch / name
        self.images = self.scratch / "images"
        self.bundle = self.scratch / "bundle"
        self.bundle.mkdir(parents=True)
        self.images.mkdir()
        self.worker = netns.Worker(namespace)
        self.port: ServicePort = self.worker(ServicePort, self.scratch / "netns")

    def write_spec(self, rootfs: Path, program: Program, netns_path: Path) -> None:
        """`runc spec`'s own defaults, with our command, root and network; no control group file system."""
        config = self.bundle / "config.json"
        config.unlink(missing_ok=True)
        run("runc", "spec", cwd=self.bundle)
        spec = json.loads(config.read_text())
        spec["process"] |= {
            "terminal": False,
            "args": list(program.argv),
            "env": [PATH, *program.env],
            "cwd": program.workdir,
        }
        # one root for all nodes: what the service writes needs no copying
        spec["root"] = {"path": str(rootfs), "readonly": False}
        for kind in ("bounding", "effective", "permitted"):
            spec["process"]["capabilities"][kind] = CAPABILITIES
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
        linux = spec["linux"]
        linux["cgroupsPath"] = f"/{CGROUP}/{self.name}"
        linux["namespaces"] = [space for space in linux["namespaces"] if space["type"] != "cgroup"]
        for space in linux["namespaces"]:
            if space["type"] == "network":
                space["path"] = str(netns_path)
        config.write_text(json.dumps(spec))

    def runc(self, command: str, *options: str) -> None:
        """``runc COMMAND OPTIONS baseline``, in a mount namespace whose /run is a tmpfs, as on most hosts:
        there CRIU keeps its feature cache. The container's descriptors go to /dev/null."""
        log = self.scratch / "runc.log"
        log.unlink(missing_ok=True)
        argv = ["runc", "--root", str(self.scratch / "runc"), "--log", str(log), command, *options, NAME]
        script = f'mount --bind "{self._shared / "run"}" /run && exec "$@"'
        env = {**os.environ, "PATH": f"{self._shared / 'bin'}:{os.environ.get('PATH', os.defpath)}"}
        null = subprocess.DEVNULL

        def call() -> int:
            wrapped = ["unshare", "--mount", "sh", "-c", script, "sh", *argv]
            return subprocess.run(wrapped, stdin=null, stdout=null, stderr=null, env=env, check=False).returncode

        code = self.worker(call)
        if code:
            words = log.read_text().strip().splitlines() if log.exists() else []
            reason = words[-1] if words else f"exit code {code}"
            raise StepFailed(f"runc {command} on {self.name}: {self._criu_said() or reason}")

    def _criu_said(self) -> str:
        """The last error in CRIU's newest log: the first ones are often harmless."""
        logs = sorted((self.scratch / "work").glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
        errors = [line for line in lines if "Error" in line and "FAILED" not in line]
        return f"CRIU: {errors[-1]}" if errors else ""

    def answer_arp(self, answer: bool) -> None:
        """Whether the service's namespace says where its address is, when asked."""
        value = 0 if answer else 8  # 8: for no local address (kernel: ip-sysctl, arp_ignore)
        netns.call(self.port.path(NAME), lambda: netns.write_sysctl("net/ipv4/conf/all/arp_ignore", value))

    def image_options(self) -> tuple[str, ...]:
        return "--image-path", str(self.images), "--work-path", str(self.scratch / "work")

    def clear_images(self) -> None:
        shutil.rmtree(self.images, ignore_errors=True)
        self.images.mkdir()

    def forget(self) -> None:
        """Container, port and images go; safe when there are none."""
        with contextlib.suppress(StepFailed):
            self.runc("delete", "--force")
        if self.port.exists(NAME):
            self.worker(self.port.remove, NAME)
        self.clear_images()

    def close(self) -> None:
        self.forget()
        self.worker.close()


class Baseline:
    """The same service as a plain runc container, moved the plain way. Use as a context manager.

    `places`: node name -> (underlay address, path of its network namespace); `address` with prefix length.
    """

    def __init__(
        self,
        places: Mapping[str, tuple[str, Path]],
        program: Program,
        address: str,
        gateway: str | None,
    ) -> None:
        self._places, self._program = places, program
        self._address, self._gateway = address, gateway
        self._undo = contextlib.ExitStack()
        self.nodes: dict[str, Node] = {}
        self.at = ""

    def __enter__(self) -> Baseline:
        try:
            self._prepare()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _prepare(self) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="whimbrel-baseline-"))
        self._undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        run("mount", "-t", "tmpfs", "-o", "size=90%,mode=0700", "tmpfs", str(scratch))
        self._undo.callback(run, "umount", "--lazy", str(scratch))
        for part in ("run", "bin"):
            (scratch / part).mkdir()
        criu = shutil.which(criu_path())
        if criu is None:
            raise BadInput("the baseline needs CRIU: run `make setup`, or name one by WHIMBREL_CRIU")
        (scratch / "bin/criu").symlink_to(criu)
        run("umoci", "unpack", "--image", self._program.image, str(scratch / "image"))
        self._rootfs = scratch / "image/rootfs"
        self._undo.callback(remove_cgroups)
        for name, (host, namespace) in self._places.items():
            self.nodes[name] = Node(name, host, namespace, scratch)
            self._undo.callback(self.nodes[name].close)

    def _make_port(self, node: Node) -> None:
        info = node.worker(node.port.create, NAME, self._address, self._gateway)
        node.write_spec(self._rootfs, self._program, info.netns_path)

    def start(self, name: str) -> None:
        node = self.nodes[name]
        self._make_port(node)
        node.worker(node.port.open, NAME)
        node.runc("run", "--detach", "--bundle", str(node.bundle))
        node.worker(node.port.announce, NAME)
        self.at = name

    def move(self, destination: str, workload: str) -> MigrationRecord:
        """Checkpoint, copy, restore, open, announce. What the client saw is added by whoever asked it."""
        source, target = self.nodes[self.at], self.nodes[destination]
        if target.port.exists(NAME):
            target.worker(target.port.remove, NAME)
        self._make_port(target)
        listener = target.worker(listen, target.host)
        started_unix_s, marks = time.time(), [("", time.monotonic())]

        def mark(name: str) -> None:
            marks.append((name, time.monotonic()))

        with listener:
            source.runc("checkpoint", *OPTIONS, *source.image_options())
            source.worker(source.port.close, NAME)
            mark("checkpoint")
            size_bytes = copy(source, target, listener)
            mark("copy")
        target.answer_arp(False)
        target.worker(target.port.open, NAME)
        target.runc("restore", "--detach", "--bundle", str(target.bundle), *OPTIONS, *target.image_options())
        mark("restore")
        target.answer_arp(True)
        target.worker(target.port.announce, NAME)
        mark("announce")
        total_ms = (marks[-1][1] - marks[0][1]) * 1e3
        source.forget()
        target.clear_images()
        self.at = destination
        return MigrationRecord(
            id=f"{NAME}-{int(started_unix_s * 1e3)}",
            service=NAME,
            source=source.name,
            destination=target.name,
            strategy=BASELINE,
            workload=workload,
            outcome=Outcome.DONE,
            started_unix_s=started_unix_s,
            total_ms=total_ms,
            freeze_ms=(marks[3][1] - marks[0][1]) * 1e3,
            bytes_sent=size_bytes,
            phases=tuple(
                Phase(name=name, start_ms=(begin - marks[0][1]) * 1e3, duration_ms=(end - begin) * 1e3)
                for (_, begin), (name, end) in itertools.pairwise(marks)
            ),
        )


def listen(host: str) -> socket.socket:
    listener = socket.create_server((host, 0))
    listener.settimeout(30.0)
    return listener


def copy(source: Node, target: Node, listener: socket.socket) -> int:
    """All images, by `tar` at both ends of one TCP connection; returns their bytes."""
    size_bytes = sum(path.stat().st_size for path in source.images.iterdir())
    out = source.worker(socket.create_connection, listener.getsockname()[:2], 5.0)
    into, _ = listener.accept()
    for sock in (out, into):
        sock.settimeout(None)
        sock.setblocking(True)
    options = ("--blocking-factor=2048", "--file=-")
    with out, into:
        unpack = subprocess.Popen(
            ["tar", "--extract", "--read-full-records", *options, "--directory", str(target.images)],
            stdin=into.fileno(),
        )
        pack = subprocess.Popen(
            ["tar", "--create", *options, "--directory", str(source.images), "."], stdout=out.fileno()
        )
        into.close()
        packed = pack.wait()
        out.close()
        unpacked = unpack.wait()
    if packed or unpacked:
        raise StepFailed(f"the copy from {source.name} to {target.name} failed (tar: {packed}, {unpacked})")
    return size_bytes


def remove_cgroups() -> None:
    """The empty parents that runc leaves behind."""
    for parent in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
        for folder in (*parent.glob("*/"), parent):
            with contextlib.suppress(OSError):
                folder.rmdir()
