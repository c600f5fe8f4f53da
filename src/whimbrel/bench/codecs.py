"""`whimbrel bench codecs`: how fast pages cross with each codec, over links of several rates.

Each memory image crosses twice, as in a migration: all of it, then what changed a moment later. It is read out of a
real process, crosses a real connection between two network namespaces, and ends in a page store, which is compared
with the image afterwards. The throughput is that of the pages before coding: what counts is when they are there.

What is promised is judged on the memory of `objects`, taken while its client sends pages (`PROMISED`).
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from whimbrel.bench import memories, table
from whimbrel.bench.memories import Image
from whimbrel.bench.pages import end, take_pages, wait_for
from whimbrel.bench.report import FAIL, PASS, machine, spread
from whimbrel.bench.shaped import Ends, shaped_pair
from whimbrel.client.outage import median
from whimbrel.memory.codecs import to_runs
from whimbrel.memory.ranges import as_ranges
from whimbrel.memory.store import PageStore
from whimbrel.memory.tracker import ProcessPages
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.pages import PageSender
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES, format_bytes
from whimbrel.network import netns
from whimbrel.plan.strategies import Codec

NS_PID = 1
WAYS = (Codec.RAW, Codec.ZSTD, Codec.DELTA, Codec.AUTO)
HEADINGS = (
    "memory",
    "link",
    "codec",
    "n",
    "all pages",
    "changed pages",
    "both",
    "against raw",
    "sent",
    "how they crossed",
    "promised",
)
_Context = multiprocessing.get_context("forkserver")  # not forked from here: the caller may have threads
_Context.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Rate:
    """`runs` of images of `size_bytes`: a fast link needs more of both for a figure that means something.
    `promised`: at least this many times the throughput of raw pages, on the memory of `JUDGED`, of `judged_runs`; 0:
    nothing is."""

    name: str
    bps: float
    size_bytes: int
    runs: int
    promised: float = 0.0
    judged_runs: int = 0


RATES = (
    Rate("100 Mbit/s", 100e6, 32 << 20, 1, promised=2.0, judged_runs=3),
    Rate("1 Gbit/s", 1e9, 64 << 20, 3),
    Rate("10 Gbit/s", 10e9, 256 << 20, 5, promised=1.0, judged_runs=9),
    Rate("unlimited", 0, 256 << 20, 5),
)
JUDGED = "objects"
LEAST_RUNS = 3


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """One image, both times: pages before coding (bytes), what was sent for them (bytes), how long it took (s)."""

    raw_bytes: tuple[int, ...]
    sent_bytes: tuple[int, ...]
    took_s: tuple[float, ...]
    codec: tuple[str, ...]

    @property
    def bytes_per_s(self) -> float:
        return sum(self.raw_bytes) / sum(self.took_s)


def _receive(namespace: str, host: str, image_path: str, pipe: Connection) -> None:
    """The destination: says its port, takes everything, says whether it is what was sent."""
    netns.enter(Path(namespace))
    image = Image.load(Path(image_path))
    # as in a migration, the store has its memory before the first page comes
    store = PageStore(len(image.first) + len(image.changed))
    store.wait_touched()
    with socket.create_server((host, 0)) as listener:
        pipe.send(listener.getsockname()[1])
        conn, _ = listener.accept()
    take_pages(PageChannel(conn), store)
    store.merge()
    index = store.of(NS_PID)
    newest = store.words()[index.slots]
    image.first[image.changed] = image.then
    pipe.send(len(index.pages) == len(image.first) and bool((newest == image.first).all()))
    conn.close()


def _send(namespace: str, host: str, port: int, codec: Codec, image_path: str, pipe: Connection) -> None:
    """The source: sends the image out of a process that holds it, twice; says what it took."""
    netns.enter(Path(namespace))
    image = Image.load(Path(image_path))
    size = image.first.nbytes
    memory = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), np.uint64).reshape(image.first.shape)
    memory[:] = image.first
    start = memory.ctypes.data
    everything = as_ranges([(start, start + size)])
    changed = to_runs(
        image.changed.astype(np.uint64) + np.uint64(start // PAGE_BYTES), np.zeros(len(image.changed), np.uint8)
    )
    channel = PageChannel.connect(host, port, "")
    sender = PageSender(channel, codec)
    found = []
    with _holder(memory, image) as (holder, move_on):
        for number, ranges in enumerate((everything, changed)):
            if number:
                move_on()
            begin_s = time.monotonic()
            carried = sender.send([ProcessPages(pid=holder, ns_pid=NS_PID, ranges=ranges)])
            channel.send(Kind.ROUND, number)
            channel.expect(Kind.ACK, number=number)
            found.append((carried, time.monotonic() - begin_s))
    end(channel)
    pipe.send(
        Crossing(
            raw_bytes=tuple(carried.pages * PAGE_BYTES for carried, _ in found),
            sent_bytes=tuple(carried.sent_bytes for carried, _ in found),
            took_s=tuple(took_s for _, took_s in found),
            codec=tuple(carried.codec for carried, _ in found),
        )
    )


@contextmanager
def _holder(memory: memories.Words, image: Image) -> Iterator[tuple[int, Callable[[], None]]]:
    """A process that holds `memory`, as in a migration it is another's; the second value lets it change its pages."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while theirs.recv(1):
            memory[image.changed] = image.then
            theirs.send(b".")
        os._exit(0)
    theirs.close()

    def move_on() -> None:
        ours.send(b".")
        if not ours.recv(1):
            raise StepFailed("the process that holds the memory ended")

    try:
        yield pid, move_on
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def crossing(ends: Ends, image_path: Path, codec: Codec) -> Crossing:
    """One image from one end to the other. Raises StepFailed when it does not arrive as it was sent."""
    (port_in, port_out), (done_in, done_out) = (_Context.Pipe(duplex=False) for _ in range(2))
    where = (ends.destination, ends.address, str(image_path), port_out)
    taker = _Context.Process(target=_receive, args=where, daemon=True)
    processes: list[BaseProcess] = [taker]
    taker.start()
    port_out.close()
    try:
        arguments = (ends.source, ends.address, wait_for(port_in), codec, str(image_path), done_out)
        giver = _Context.Process(target=_send, args=arguments)
        processes.append(giver)
        giver.start()
        done_out.close()
        result, right = wait_for(done_in), wait_for(port_in)
        if not right:
            raise StepFailed(f"{image_path.stem}, {codec}: what arrived is not what was sent")
        return result  # type: ignore[no-any-return]
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
        port_in.close()
        done_in.close()


def run(console: Console, *, pid: int = 0, rates: Sequence[Rate] = RATES, judged: str = JUDGED) -> dict[str, Any]:
    """Measure all images over all links with all codecs; prints a table. `pid`: also the memory of this process;
    `judged`: the workload that promises are judged on."""
    runs: list[dict[str, Any]] = []

    def tell(text: str) -> None:
        console.print(text, highlight=False)

    with tempfile.TemporaryDirectory(prefix="whimbrel-codecs-") as folder:
        real = [memories.of_program()] + ([memories.of_process(pid, f"process {pid}")] if pid else [])
        served = memories.of_workload(judged, progress=tell)
        tell(f"{judged}: {format_bytes(served.first.nbytes)}, {len(served.changed) / len(served.first):.1%} changed")
        for rate in rates:
            images = [(make(), rate.runs) for make in memories.made(rate.size_bytes)]
            images += [(image, rate.runs) for image in real]
            images += [(served, rate.judged_runs)] if rate.promised else []
            with shaped_pair(rate.bps) as ends:
                for image, times in images:
                    path = Path(folder) / f"{image.name}.npz"
                    image.save(path)
                    for number in range(times):
                        runs += [_one(ends, rate, path, codec) for codec in turned(WAYS, number)]
                    tell(f"{rate.name}: {image.name} done")
                    path.unlink()
    entries = summary(runs, {rate.name: rate.promised for rate in rates if rate.promised}, judged)
    table.show(console, HEADINGS, [_cells(entry) for entry in entries])
    return {
        "machine": machine(),
        "parameters": {"links": [msgspec.to_builtins(rate) for rate in rates], "judged": judged},
        "runs": runs,
        "summary": entries,
    }


def turned(ways: Sequence[Codec], number: int) -> list[Codec]:
    """Each run begins with another one: what drifts on the machine meets all alike."""
    first = number % len(ways)
    return [*ways[first:], *ways[:first]]


def _one(ends: Ends, rate: Rate, path: Path, codec: Codec) -> dict[str, Any]:
    result = crossing(ends, path, codec)
    return {
        "workload": path.stem,
        "link": rate.name,
        "strategy": str(codec),
        "bytes_per_s": result.bytes_per_s,
        **msgspec.to_builtins(result),
    }


def summary(
    runs: Sequence[dict[str, Any]], promised: Mapping[str, float] | None = None, judged: str = JUDGED
) -> list[dict[str, Any]]:
    """One entry per memory, link and codec: throughput before coding (bytes/s), of all pages, of the changed ones, and
    of both; `ratio_raw` = median over the median of raw on the same link. `promised`: link -> the least ratio of the
    codec that a migration chooses (`auto`), for the memory `judged`."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in runs:
        groups.setdefault((entry["link"], entry["workload"], entry["strategy"]), []).append(entry)
    entries: list[dict[str, Any]] = []
    for (link, workload, strategy), found in groups.items():
        both = [entry["bytes_per_s"] for entry in found]
        plain = [entry["bytes_per_s"] for entry in groups[link, workload, str(Codec.RAW)]]
        entries.append(
            {
                "strategy": strategy,
                "workload": workload,
                "link": link,
                "n": len(found),
                "bytes_per_s": spread(both),
                "first_bytes_per_s": spread(entry["raw_bytes"][0] / entry["took_s"][0] for entry in found),
                "changed_bytes_per_s": spread(entry["raw_bytes"][1] / entry["took_s"][1] for entry in found),
                "sent_share": median([sum(entry["sent_bytes"]) / sum(entry["raw_bytes"]) for entry in found]),
                "ratio_raw": median(both) / median(plain),
                "codec": found[-1]["codec"],
                "promised": "",
            }
        )
        if promised and link in promised and (workload, strategy) == (judged, str(Codec.AUTO)):
            entries[-1]["promised"] = verdict(entries[-1]["ratio_raw"], promised[link], min(len(both), len(plain)))
    return entries


def verdict(ratio: float, least: float, runs: int) -> str:
    """The ratio counts in hundredths, as it is shown."""
    if runs < LEAST_RUNS:
        return f"unproved: {runs} runs, {LEAST_RUNS} are needed"
    return PASS if round(ratio, 2) >= least else f"{FAIL}: < {least:g} x"


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    rates = (
        f"{format_bytes(entry[name]['p50'])}/s" for name in ("first_bytes_per_s", "changed_bytes_per_s", "bytes_per_s")
    )
    return (
        entry["workload"],
        entry["link"],
        entry["strategy"],
        str(entry["n"]),
        *rates,
        f"{entry['ratio_raw']:.2f} x",
        f"{entry['sent_share']:.1%}",
        " / ".join(entry["codec"]),
        entry["promised"],
    )
