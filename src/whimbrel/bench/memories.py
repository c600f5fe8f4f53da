"""Images of memory to measure codecs on: what a process holds, and what it holds a moment later."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from whimbrel.bench.baseline import PATH
from whimbrel.bench.shaped import shaped_pair
from whimbrel.bench.trial import named
from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.store import pages_of
from whimbrel.memory.tracker import TreeTracker
from whimbrel.model.errors import BadInput, StepFailed
from whimbrel.model.units import PAGE_BYTES
from whimbrel.workloads.builder import build
from whimbrel.workloads.commands import run

Words = npt.NDArray[np.uint64]
SETTLE_S, BETWEEN_S = 1.0, 0.5
FILL_S = 90.0
# Each part becomes the next: the process is the program's in the end, and its mounts go with it.
IN_ROOT = ("unshare", "--mount", "--propagation", "private", "sh", "-c", """
for name in proc sys dev; do mount --rbind "/$name" "$1/$name" || exit 1; done
exec chroot "$@"
""", "sh")  # fmt: skip
FULL_AFTER = 5  # looks, one a second, that differ by less than a hundredth
READY_S = 60.0

# Sessions of users who move about: dictionaries, strings and numbers, some of which change all the time.
PROGRAM = """
import fastapi, httpx, json, msgspec, numpy, random, rich, time, uvicorn
rng = random.Random(1)
users = {number: {"id": number, "name": f"user-{number}", "cell": f"cell-{rng.randrange(40)}", "log": [],
                  "position": [rng.random(), rng.random()]} for number in range(60000)}
heat = numpy.zeros((500, 500), numpy.float32)
print("ready", flush=True)
turn = 0
while True:
    for _ in range(300):
        user = users[rng.randrange(len(users))]
        user["position"] = [rng.random(), rng.random()]
        user["log"] = [*user["log"][-4:], {"turn": turn, "cell": user["cell"]}]
        heat[int(user["position"][0] * 500), int(user["position"][1] * 500)] += 1
    json.dumps([user["position"] for user in users.values()])
    turn += 1
    time.sleep(0.01)
"""


@dataclass(frozen=True, eq=False)
class Image:
    """`first`: all pages, shape (n, 512). A moment later page `changed[i]` holds `then[i]`; it is dirty even where
    that is what it held before."""

    name: str
    first: Words
    changed: npt.NDArray[np.int64]
    then: Words

    def save(self, path: Path) -> None:
        np.savez(path, first=self.first, changed=self.changed, then=self.then)

    @staticmethod
    def load(path: Path) -> Image:
        with np.load(path) as saved:
            return Image(path.stem, saved["first"], saved["changed"], saved["then"])


def made(size_bytes: int) -> list[Callable[[], Image]]:
    """Images made of nothing but arithmetic and the interpreter's own sources, by rising density."""
    return [
        lambda: _image("zero-heavy", _sparse(size_bytes)),
        lambda: _image("text", _text(size_bytes)),
        lambda: _image("random", _random(size_bytes)),
    ]


def _image(name: str, first: Words) -> Image:
    """A quarter of the pages is dirty later: of them every tenth was written anew, the others differ by some words."""
    rng = np.random.default_rng(2)
    changed = np.sort(rng.permutation(len(first))[: len(first) // 4])
    then = first[changed]
    for number, page in enumerate(then):
        count = page.size if number % 10 == 0 else 20
        page[rng.integers(0, page.size, count)] = rng.integers(0, 2**64, count, np.uint64)
    return Image(name, first, changed, then)


def _random(size_bytes: int) -> Words:
    words = np.random.default_rng(1).integers(0, 2**64, size_bytes // 8, np.uint64)
    return words.reshape(-1, PAGE_BYTES // 8)


def _text(size_bytes: int) -> Words:
    """Program text: the standard library's, over and over if that is not enough."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if len(text) >= size_bytes:
            break
        text += path.read_bytes()
    words = np.resize(np.frombuffer(bytes(text), np.uint8), size_bytes).view(np.uint64)
    return words.reshape(-1, PAGE_BYTES // 8)


def _sparse(size_bytes: int) -> Words:
    """Memory that was set aside and hardly used: nine of ten pages are zero."""
    words = np.zeros((size_bytes // PAGE_BYTES, PAGE_BYTES // 8), np.uint64)
    used = words[::10]
    used[:] = _text(used.nbytes)
    return words


def of_program() -> Image:
    """Of a real process: a Python service with its libraries and the sessions of 60,000 users."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], READY_S)
        if not ready or not process.stdout.readline():
            raise StepFailed("the program whose memory is measured did not start")
        time.sleep(SETTLE_S)
        return of_process(process.pid, "process")
    finally:
        process.kill()
        process.wait()


def of_workload(name: str, *, settle_s: float = FILL_S, progress: Callable[[str], object] = print) -> Image:
    """Of a workload's service while its own client asks it, once its memory grows no more (`settle_s` at most).

    It runs out of its image's files, in a network namespace of its own beside the client's.

    Raises Refused, Unreachable.
    """
    workload = named(name)
    image = build(workload.recipe, progress=progress)
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="whimbrel-codecs-")))
        run("umoci", "raw", "unpack", "--image", image.umoci, str(folder / "root"))
        ends = undo.enter_context(shaped_pair(0))
        command = (*IN_ROOT, str(folder / "root"), *workload.recipe.command)
        settings = dict(setting.split("=", 1) for setting in (PATH, *workload.env))
        quiet = subprocess.DEVNULL
        service = subprocess.Popen(
            ["nsenter", f"--net={ends.destination}", *command], env=settings, stdin=quiet, stdout=quiet, stderr=quiet
        )
        undo.callback(_end, service)
        undo.enter_context(workload.probe(ends.address, image, ("nsenter", f"--net={ends.source}")))
        _wait_until_full(service.pid, settle_s)
        return of_process(service.pid, name)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _wait_until_full(pid: int, most_s: float) -> None:
    deadline, sizes = time.monotonic() + most_s, deque[int](maxlen=FULL_AFTER)
    while time.monotonic() < deadline:
        sizes.append(psutil.Process(pid).memory_info().rss)
        if len(sizes) == FULL_AFTER and max(sizes) - min(sizes) < max(sizes) / 100:
            return
        time.sleep(1.0)


def of_process(pid: int, name: str) -> Image:
    """Of a running process: it stands still for a moment, runs for half a second, and stands still again.

    Raises BadInput when there is no such process or it has no memory of its own.
    """
    with TreeTracker(pid) as tracker:
        first_pages, first = _stopped(pid, tracker)
        if not len(first_pages):
            raise BadInput(f"process {pid} has no memory of its own: name another")
        time.sleep(BETWEEN_S)
        then_pages, then = _stopped(pid, tracker)
    at = np.searchsorted(first_pages, then_pages)
    at[at == len(first_pages)] = 0
    known = first_pages[at] == then_pages
    # pages that were not there at first: the image has them as zeros from the beginning
    fresh = np.count_nonzero(~known)
    changed = at.astype(np.int64)
    changed[~known] = len(first) + np.arange(fresh)
    order = np.argsort(changed)
    grown = np.concatenate((first, np.zeros((fresh, PAGE_BYTES // 8), np.uint64)))
    return Image(name, grown, changed[order], then[order])


def _stopped(pid: int, tracker: TreeTracker) -> tuple[npt.NDArray[np.uint64], Words]:
    """The page numbers and contents of what `pid` has written since the last scan (in the first: everything)."""
    try:
        os.kill(pid, signal.SIGSTOP)
        found = [pages for pages in tracker.scan() if pages.pid == pid]
        if not found:
            return np.empty(0, np.uint64), np.empty((0, PAGE_BYTES // 8), np.uint64)
        contents = bytearray(found[0].size_bytes)
        read_pages_into(pid, found[0].ranges, contents)
        return pages_of(found[0].ranges), np.frombuffer(contents, np.uint64).reshape(-1, PAGE_BYTES // 8)
    except ProcessLookupError:
        raise BadInput(f"process {pid} ended while its memory was read") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
