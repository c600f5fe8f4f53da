"""`whimbrel bench files`: how soon a root file system is at the other node, beside rsync.

Both ways carry the same tree from one tmpfs to another one, between the same two network namespaces, in turn: a pass
of all of it, one in which nothing has changed, and one in which every hundredth file has. What arrived is compared.
rsync runs as the shell scripts of `experiments` run it: its daemon is up, a client starts for each pass.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from whimbrel.bench import table
from whimbrel.bench.pages import wait_for
from whimbrel.bench.report import FAIL, PASS, machine, spread
from whimbrel.bench.roots import fill
from whimbrel.bench.shaped import Ends, shaped_pair
from whimbrel.client.outage import median
from whimbrel.migrate.files import FileSync
from whimbrel.migrate.nursery import Nursery
from whimbrel.migrate.sendfiles import CarriedFolder
from whimbrel.migrate.takefiles import FileArrival
from whimbrel.model.errors import Refused, StepFailed
from whimbrel.model.units import format_bytes
from whimbrel.network import netns
from whimbrel.runtime.moving import FileTarget
from whimbrel.storage.treedigest import tree_digest

SIZE_BYTES = 350_000_000
RUNS = 5
FIRST, SAME, CHANGED = "first", "unchanged", "changed"
PASSES = (FIRST, SAME, CHANGED)
OURS, RSYNC = "whimbrel", "rsync"
EVERY = 100
RSYNC_PORT = 8730
READY_S = 5.0
MOST_RATIO = {FIRST: 1.25, SAME: 0.6, CHANGED: 0.6}  # to rsync's time
_Context = multiprocessing.get_context("spawn")  # no fork: the caller may have threads
Carry = Callable[[], float]


def _arrive(namespace: str, host: str, target: str, token: str, pipe: Connection) -> None:
    """The destination: says its port, and stays until it is told to go."""
    netns.enter(Path(namespace))
    gc.collect()
    gc.freeze()  # as in the nursery, from which a migration's processes are forked
    pipe.send(FileArrival([FileTarget(path=target)], token).listen(host))
    pipe.recv()


def _depart(namespace: str, host: str, port: int, source: str, token: str, pipe: Connection) -> None:
    """The source: for each word that comes one pass, and says how many seconds it took."""
    netns.enter(Path(namespace))
    nursery = Nursery()
    nursery.start()  # as an agent's: it is there before anybody asks for a migration
    sync = FileSync(
        [CarriedFolder(source, inside=source.lstrip("/"), writer=os.getpid())], tuple, lambda *_: None, nursery
    )
    try:
        pipe.send(None)
        started = False
        while pipe.recv():
            begin_s = time.monotonic()
            if not started:
                sync.start(host, port, token)
                started = True
            sync.round()
            pipe.send(time.monotonic() - begin_s)
    finally:
        sync.close()
        nursery.close()


@contextlib.contextmanager
def by_whimbrel(ends: Ends, source: Path, target: Path) -> Iterator[Carry]:
    """As a migration carries files: a process that sends, and a thread of one that takes."""
    token = secrets.token_hex(16)
    here, there = _Context.Pipe(), _Context.Pipe()
    taker = _Context.Process(target=_arrive, args=(ends.destination, ends.address, str(target), token, there[1]))
    with contextlib.ExitStack() as undo:
        undo.callback(_end, taker, there[0])
        taker.start()
        there[1].close()
        port = wait_for(there[0])
        giver = _Context.Process(target=_depart, args=(ends.source, ends.address, port, str(source), token, here[1]))
        undo.callback(_end, giver, here[0])
        giver.start()
        here[1].close()
        wait_for(here[0])

        def carry() -> float:
            here[0].send(True)
            return float(wait_for(here[0]))

        yield carry


def _end(process: multiprocessing.context.SpawnProcess, pipe: Connection) -> None:
    with contextlib.suppress(OSError):
        pipe.send(False)
    process.join(READY_S)
    if process.is_alive():
        process.kill()
        process.join()
    pipe.close()


@contextlib.contextmanager
def by_rsync(ends: Ends, source: Path, target: Path) -> Iterator[Carry]:
    """As the scripts do: ``rsync --archive --whole-file --delete`` to a daemon."""
    config = target.with_name("rsyncd.conf")
    config.write_text(
        "use chroot = no\nuid = 0\ngid = 0\nmunge symlinks = no\nreverse lookup = no\nlog file = /dev/null\n"
        f"[target]\npath = {target}\nread only = no\n"
    )
    daemon = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={RSYNC_PORT}"]
    process = subprocess.Popen(["nsenter", f"--net={ends.destination}", *daemon], stdin=subprocess.DEVNULL)
    module = f"rsync://{ends.address}:{RSYNC_PORT}/target/"
    client = ["nsenter", f"--net={ends.source}", "rsync"]
    try:
        deadline = time.monotonic() + READY_S
        while subprocess.run([*client, module], capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise StepFailed("rsync's daemon does not answer")
            time.sleep(0.02)

        def carry() -> float:
            begin_s = time.monotonic()
            command = [*client, "--archive", "--whole-file", "--delete", f"{source}/", module]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise StepFailed(f"rsync failed: {done.stderr.strip()}")
            return time.monotonic() - begin_s

        yield carry
    finally:
        process.terminate()
        process.wait()


WAYS = {OURS: by_whimbrel, RSYNC: by_rsync}


def change(tree: Path) -> None:
    """Write every hundredth file anew, of the same size. Its time moves by seconds: rsync looks at nothing less."""
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    for path in itertools.islice(files, 0, None, EVERY):
        before = path.stat()
        path.write_bytes(os.urandom(before.st_size))
        os.utime(path, (before.st_atime, before.st_mtime + 2))


def passes(way: str, ends: Ends, tree: Path, target: Path) -> dict[str, float]:
    """The seconds of each pass. Raises StepFailed when what arrived is not what was sent."""
    target.mkdir()
    try:
        with WAYS[way](ends, tree, target) as carry:
            found = {FIRST: carry(), SAME: carry()}
            change(tree)
            found[CHANGED] = carry()
        if tree_digest(tree) != tree_digest(target):
            raise StepFailed(f"the tree that {way} carried is not the one that was sent")
        return found
    finally:
        shutil.rmtree(target)


def measure(ends: Ends, folder: Path, *, size_bytes: int = SIZE_BYTES, runs: int = RUNS) -> dict[str, Any]:
    """Both ways in turn, `runs` times each. ``ratio``: our median over rsync's, by pass."""
    tree = folder / "tree"
    tree.mkdir()
    fill(tree, size_bytes)
    files = sum(1 for path in tree.rglob("*") if path.is_file())
    took: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(runs):
        for way in WAYS:
            took[way].append(passes(way, ends, tree, folder / f"{way}-{number}"))
    ratio = {each: median([run[each] for run in took[OURS]]) / median([run[each] for run in took[RSYNC]])
             for each in PASSES}  # fmt: skip
    return {
        "machine": machine(),
        "parameters": {"size_bytes": size_bytes, "files": files, "runs": runs},
        "runs": [{"strategy": way, **{f"{name}_s": run[name] for name in PASSES}} for way in WAYS for run in took[way]],
        "summary": [
            {"strategy": way, "workload": name, "n": runs, "seconds": spread(run[name] for run in took[way])}
            for name in PASSES
            for way in WAYS
        ],
        "ratio": ratio,
        "promised": held(ratio),
    }


def held(ratio: dict[str, float]) -> str:
    """Whether no pass took longer than is promised."""
    slower = [f"{name} {value:.2f} of rsync's time" for name, value in ratio.items() if value > MOST_RATIO[name]]
    return f"{FAIL}: {', '.join(slower)}" if slower else PASS


def run(console: Console, *, size_bytes: int = SIZE_BYTES, runs: int = RUNS) -> dict[str, Any]:
    """Measure on a tmpfs, between two namespaces of its own; prints a table."""
    if shutil.which("rsync") is None:
        raise Refused("there is no rsync to compare with: run scripts/setup")
    with contextlib.ExitStack() as undo:
        folder = Path(tempfile.mkdtemp(prefix="whimbrel-files-"))
        undo.callback(folder.rmdir)
        ends = undo.enter_context(shaped_pair(0))
        mount = ["mount", "-t", "tmpfs", "-o", "size=90%,mode=0700", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
        undo.callback(subprocess.run, ["umount", str(folder)], check=True)
        result = measure(ends, folder, size_bytes=size_bytes, runs=runs)
    rows = [
        (entry["strategy"], entry["workload"], str(entry["n"]),
         *(table.ms(entry["seconds"][p] * 1e3) for p in ("p50", "p95")),
         f"{result['ratio'][entry['workload']]:.2f}" if entry["strategy"] == OURS else "")
        for entry in result["summary"]
    ]  # fmt: skip
    table.show(console, ("strategy", "pass", "n", "p50", "p95", "of rsync's time"), rows)
    promised = ", ".join(f"{name} {most}" for name, most in MOST_RATIO.items())
    files, size = result["parameters"]["files"], format_bytes(size_bytes)
    console.print(f"{files} files, {size}; promised of rsync's time {promised}: {result['promised']}", highlight=False)
    return result
