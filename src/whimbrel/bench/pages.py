"""`whimbrel bench pages`: how much of a link's plain speed page streaming keeps.

Both ways move the same bytes of a real process's memory between the same two namespaces: plain
`socket.sendall` of them from a buffer into a reader that throws them away; and Whimbrel's page channel, which
reads them out of the process, frames them, and puts them into the destination's page store.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from whimbrel.bench import table
from whimbrel.bench.report import machine, spread
from whimbrel.client.outage import median
from whimbrel.lab.session import lab_session
from whimbrel.memory.store import PageStore
from whimbrel.memory.tracker import ProcessPages
from whimbrel.migrate.intake import PageIntake
from whimbrel.migrate.pagechannel import Kind, PageChannel, RestoreOrder
from whimbrel.migrate.pages import PageSender
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES, format_bytes
from whimbrel.network import netns

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 120.0
PROMISED_RATIO = 0.6
PLAIN, PAGES = "sendall", "pages"
_Context = multiprocessing.get_context("spawn")  # no fork: the caller may have threads


def _enter(namespace: str) -> None:
    if namespace:
        netns.enter(Path(namespace))


def _receive(way: str, namespace: str, host: str, size_bytes: int, pipe: Connection) -> None:
    """The destination: says its port, takes everything, says when it had it all."""
    _enter(namespace)
    store = PageStore(size_bytes // PAGE_BYTES) if way == PAGES else None
    if store is not None:
        store.wait_touched()  # in a migration that happens while both sides get ready
    with socket.create_server((host, 0)) as listener:
        pipe.send(listener.getsockname()[1])
        conn, _ = listener.accept()
    if store is not None:
        take_pages(PageChannel(conn), store)
    else:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        left = size_bytes
        while left and (count := conn.recv_into(buffer)):
            left -= count
    pipe.send(time.monotonic())
    conn.close()


def take_pages(channel: PageChannel, store: PageStore) -> None:
    """What a destination does with pages, round after round, until the order to restore."""
    intake = PageIntake(store)
    channel.expect(Kind.HELLO)
    rounds = 0
    while True:
        kind, number, runs, size = channel.receive_header()
        if kind is Kind.PAGES:
            intake.take(channel, number, runs, size, recent=rounds > 0)
            continue
        channel.receive_payload(size)
        if kind is Kind.RESTORE:
            return
        rounds += 1
        store.merge()
        channel.send(Kind.ACK, number)


def end(channel: PageChannel) -> None:
    """Tell `take_pages` that this was all."""
    channel.send(Kind.RESTORE, payload=msgspec.msgpack.encode(RestoreOrder()))
    channel.close()


def _send(way: str, namespace: str, host: str, port: int, size_bytes: int, pipe: Connection) -> None:
    """The source: a process's memory, sent one way; says when it began."""
    _enter(namespace)
    memory = np.frombuffer(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE), np.uint8)
    if way == PLAIN:
        _fill(memory)
        with socket.create_connection((host, port), timeout=5.0) as conn:
            conn.settimeout(None)
            pipe.send(time.monotonic())
            conn.sendall(memory.data)
        return
    ready, filled = os.pipe()
    holder = os.fork()
    if holder == 0:
        # As in a migration, the memory is another process's own. Had it been written before the fork, the kernel would
        # make a copy of each page for the first reader, which was measured as a third of all time.
        _fill(memory)
        os.write(filled, b".")
        time.sleep(TIMEOUT_S)
        os._exit(0)
    try:
        os.read(ready, 1)
        channel = PageChannel.connect(host, port, "")
        start = memory.ctypes.data
        everything = np.array([(start, start + size_bytes)], np.uint64)
        pipe.send(time.monotonic())
        PageSender(channel).send([ProcessPages(pid=holder, ns_pid=1, ranges=everything)])
        end(channel)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def _fill(memory: NDArray[np.uint8]) -> None:
    memory[:] = np.resize(np.arange(251, dtype=np.uint8), len(memory))


def throughput(way: str, source: str, destination: str, host: str, size_bytes: int) -> float:
    """Bytes per second of one transfer from namespace `source` to `destination` (paths; "" = here), whose
    address is `host`: from the first byte sent to the last one stored. Raises StepFailed."""
    ends = [_Context.Pipe(duplex=False) for _ in range(2)]
    (port_in, port_out), (begin_in, begin_out) = ends
    taker = _Context.Process(target=_receive, args=(way, destination, host, size_bytes, port_out), daemon=True)
    processes: list[BaseProcess] = [taker]
    taker.start()
    port_out.close()
    try:
        port = wait_for(port_in)
        giver = _Context.Process(target=_send, args=(way, source, host, port, size_bytes, begin_out))
        processes.append(giver)
        giver.start()
        begin_out.close()
        begin_s, end_s = wait_for(begin_in), wait_for(port_in)
        giver.join(TIMEOUT_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
        port_in.close()
        begin_in.close()
    return size_bytes / float(end_s - begin_s)


def wait_for(pipe: Connection) -> Any:
    """What the other process says next. Raises StepFailed when it ended or says nothing for `TIMEOUT_S`."""
    try:
        if pipe.poll(TIMEOUT_S):
            return pipe.recv()
    except EOFError as error:
        raise StepFailed("one end of a transfer failed: its error is above") from error
    raise StepFailed(f"a transfer did not end within {TIMEOUT_S:g} s")


def measure(source: str, destination: str, host: str, *, size_bytes: int = 512 << 20, runs: int = 5) -> dict[str, Any]:
    """Both ways in turn, `runs` times each; ``ratio`` is the medians' quotient."""
    rates: dict[str, list[float]] = {PLAIN: [], PAGES: []}
    for _ in range(runs):
        for way, found in rates.items():
            found.append(throughput(way, source, destination, host, size_bytes))
    summary = [
        {"strategy": way, "workload": format_bytes(size_bytes), "n": runs, "bytes_per_s": spread(found)}
        for way, found in rates.items()
    ]
    ratio = median(rates[PAGES]) / median(rates[PLAIN])
    return {
        "machine": machine(),
        "parameters": {"size_bytes": size_bytes, "runs": runs},
        "runs": [{"strategy": way, "bytes_per_s": rate} for way, found in rates.items() for rate in found],
        "summary": summary,
        "ratio": ratio,
        "promised": held(ratio),
    }


def held(ratio: float) -> str:
    """Whether what is promised of page streaming was kept."""
    return "PASS" if ratio >= PROMISED_RATIO else f"FAIL: < {PROMISED_RATIO:.0%}"


def run(console: Console, *, size_bytes: int = 512 << 20, runs: int = 5) -> dict[str, Any]:
    """Measure between the first two edge nodes of the lab (its own, or one that is up); prints a table."""
    with lab_session(lambda text: console.print(text, highlight=False, markup=False), reuse=True) as status:
        source, target = [node for node in status.nodes if node.role == "edge"][:2]
        here, there = (f"/run/netns/{node.namespace}" for node in (source, target))
        result = measure(here, there, target.address, size_bytes=size_bytes, runs=runs)
    rows = [
        (
            entry["strategy"],
            str(entry["n"]),
            *(f"{format_bytes(entry['bytes_per_s'][p])}/s" for p in ("p50", "p95")),
        )
        for entry in result["summary"]
    ]
    table.show(console, ("strategy", "n", "p50", "p95"), rows)
    console.print(
        f"page streaming keeps {result['ratio']:.0%} of plain sendall, {PROMISED_RATIO:.0%} are promised: "
        f"{result['promised']}",
        highlight=False,
    )
    return result
