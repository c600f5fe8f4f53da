"""A container that a shell script moves (`scripts`): the same steps without Whimbrel, in the same lab.

The script is given good conditions: both nodes' folders on a tmpfs, rsync's daemon running ahead, CRIU's feature cache
kept, and ports, bundle and announcement done by Whimbrel's own code.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from whimbrel.bench.baseline import NAME, Node, Program, remove_cgroups
from whimbrel.bench.baseline import run as run_program
from whimbrel.bench.roots import fill
from whimbrel.checkpoint.swrk import criu_path
from whimbrel.experiments.site import Site
from whimbrel.model.errors import Refused, StepFailed
from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Round
from whimbrel.model.units import PAGE_BYTES

SCRIPTS = Path(__file__).with_name("scripts")
ADDRESS = "10.77.250.251/16"  # above the addresses that the controller gives out
RSYNC_PORT, PAGE_PORT = 8730, 8731
FREEZE = "freeze."


@dataclass
class _Told:
    """What a script said, in seconds since the epoch."""

    phases: list[tuple[str, float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Scripted:
    """The container, on the node `at`. Use `scripted`; one move for each. `shared`: its root file system and its
    images lie on the lab's storage server, which both nodes mount, and not on a tmpfs of each. `root_bytes`: the root
    is filled up to that size."""

    def __init__(self, site: Site, program: Program, scratch: Path, *, shared: bool, root_bytes: int) -> None:
        self._site = site
        self._program = program
        self._scratch = scratch
        self._shared = shared
        self._root_bytes = root_bytes
        self._undo = contextlib.ExitStack()
        self.nodes: dict[str, Node] = {}
        self.at = ""

    def close(self) -> None:
        self._undo.close()

    def start(self, name: str) -> None:
        for part in ("run", "bin"):
            (self._scratch / part).mkdir()
        (self._scratch / "bin/criu").symlink_to(_program("criu", criu_path()))
        self._undo.callback(remove_cgroups)
        for each, (host, namespace) in self._site.underlay.items():
            self.nodes[each] = Node(each, host, namespace, self._scratch)
            self._undo.callback(self.nodes[each].close)
            self._undo.callback(_end, self._serve_files(self.nodes[each]))
        node = self.nodes[name]
        run_program("umoci", "unpack", "--image", self._program.image, str(self._scratch / "image"))
        folder = node.scratch
        if self._shared:  # on the server itself: not all mounts can set the owner of a link
            folder = self._site.exported / NAME
            self._undo.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir()
        run_program("cp", "--archive", str(self._scratch / "image/rootfs"), str(folder / "rootfs"))
        shutil.rmtree(self._scratch / "image")
        if self._root_bytes:
            fill(folder / "rootfs", self._root_bytes)
        self._prepare(node)
        node.worker(node.port.open, NAME)
        node.runc("run", "--detach", "--bundle", str(node.bundle))
        node.worker(node.port.announce, NAME)
        self.at = name

    def _folder(self, node: Node) -> Path:
        """Where root file system and images are, as the node sees it."""
        return self._site.shared(node.name) / NAME if self._shared else node.scratch

    def _prepare(self, node: Node) -> None:
        info = node.worker(node.port.create, NAME, ADDRESS, self._site.gateway)
        node.write_spec(self._folder(node) / "rootfs", self._program, info.netns_path)

    def _serve_files(self, node: Node) -> subprocess.Popen[bytes]:
        config = node.scratch / "rsyncd.conf"
        config.write_text(
            f"use chroot = no\nuid = 0\ngid = 0\nmunge symlinks = no\nreverse lookup = no\nlog file = /dev/null\n"
            f"[target]\npath = {node.scratch}\nread only = no\n"
        )
        argv = [_program("rsync"), "--daemon", "--no-detach", f"--config={config}", f"--address={node.host}"]
        null = subprocess.DEVNULL
        return node.worker(
            lambda: subprocess.Popen([*argv, f"--port={RSYNC_PORT}"], stdin=null, stdout=null, stderr=null)
        )

    def move(self, strategy: str, destination: str, workload: str) -> MigrationRecord:
        """Run the strategy's script. Raises StepFailed with its last words."""
        source, target = self.nodes[self.at], self.nodes[destination]
        told, begin = _Told(), time.time()
        self._prepare(target)
        for folder in ("rootfs", "images"):
            (self._folder(target) / folder).mkdir(exist_ok=True)
        told.phases.append(("prepare", begin, time.time()))
        self._run(strategy, source, target, told)
        total_ms = (told.phases[-1][2] - begin) * 1e3
        self.at = destination
        images = self._folder(target) / "images/final"
        pages = sum(path.stat().st_size for path in images.glob("pages-*.img")) // PAGE_BYTES
        size_bytes = sum(path.stat().st_size for path in images.iterdir())
        frozen = [phase for phase in told.phases if phase[0].startswith(FREEZE)]
        freeze_ms = (frozen[-1][2] - frozen[0][1]) * 1e3
        return MigrationRecord(
            id=f"script-{int(begin * 1e3)}",
            service=NAME,
            source=source.name,
            destination=target.name,
            strategy=strategy,
            workload=workload,
            reason="; ".join(told.notes),
            outcome=Outcome.DONE,
            started_unix_s=begin,
            total_ms=total_ms,
            freeze_ms=freeze_ms,
            bytes_sent=size_bytes,
            phases=tuple(
                Phase(name=name, start_ms=(start - begin) * 1e3, duration_ms=(end - start) * 1e3)
                for name, start, end in told.phases
            ),
            rounds=(Round(n=1, dirty_pages=pages, bytes_sent=size_bytes, duration_ms=freeze_ms),),
        )

    def _run(self, strategy: str, source: Node, target: Node, told: _Told) -> None:
        process = subprocess.Popen(
            ["bash", str(SCRIPTS / f"{strategy}.sh")],
            env=self._environment(source, target),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                kind, _, rest = line.strip().partition(" ")
                if kind == "phase":
                    name, start, end = rest.split()
                    told.phases.append((name, float(start), float(end)))
                elif kind == "note":
                    told.notes.append(rest)
                elif kind == "network":
                    _switch(rest, source, target)
                    process.stdin.write("done\n")
                    process.stdin.flush()
        except BaseException:
            process.kill()
            raise
        finally:
            _, words = process.communicate()
        if process.returncode:
            said = words.strip().splitlines()
            raise StepFailed(f"the script {strategy}.sh failed: {said[-1] if said else 'it gave no reason'}")

    def _environment(self, source: Node, target: Node) -> dict[str, str]:
        places = self._site.underlay
        return {
            **os.environ,
            "PATH": f"{self._scratch / 'bin'}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "LC_ALL": "C",
            "NAME": NAME,
            "SOURCE_DIR": str(source.scratch),
            "SOURCE_NETNS": str(places[source.name][1]),
            "TARGET_DIR": str(target.scratch),
            "TARGET_NETNS": str(places[target.name][1]),
            "TARGET_HOST": target.host,
            "RSYNC_PORT": str(RSYNC_PORT),
            "PAGE_PORT": str(PAGE_PORT),
            "RUN_DIR": str(self._scratch / "run"),
            "SOURCE_SHARED": str(self._folder(source)),
            "TARGET_SHARED": str(self._folder(target)),
        }


def _switch(word: str, source: Node, target: Node) -> None:
    """The network's part, as `bench.baseline` does it: the target's port opens before the restore but says nothing,
    so that the restored service's first answer passes."""
    if word == "stopped":
        source.worker(source.port.close, NAME)
    elif word == "restoring":
        target.answer_arp(False)
        target.worker(target.port.open, NAME)
    elif word == "restored":
        target.answer_arp(True)
        target.worker(target.port.announce, NAME)
    else:
        raise StepFailed(f"the script asks for the network to be {word!r}, which means nothing")


def _program(name: str, path: str = "") -> str:
    found = shutil.which(path or name)
    if found is None:
        raise Refused(f"the shell-script baseline needs {name}: run scripts/setup")
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


@contextlib.contextmanager
def scripted(
    site: Site, program: Program, node: str, *, shared: bool = False, root_bytes: int = 0
) -> Iterator[Scripted]:
    """The program in a plain runc container on `node`, with folders on a tmpfs or on the storage server; all of it
    goes with the block."""
    with contextlib.ExitStack() as undo:
        scratch = Path(tempfile.mkdtemp(prefix="whimbrel-script-"))
        undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        run_program("mount", "-t", "tmpfs", "-o", "size=90%,mode=0700", "tmpfs", str(scratch))
        undo.callback(run_program, "umount", "--lazy", str(scratch))
        container = Scripted(site, program, scratch, shared=shared, root_bytes=root_bytes)
        undo.callback(container.close)
        container.start(node)
        yield container
