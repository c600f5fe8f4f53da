"""`whimbrel bench link`: do the links that labs are made of have the rate and the delay that were asked for?

Numbered datagrams cross a link between two network namespaces: a few, many just below the rate, and more than the
rate. The one-way delay of each is known, for both ends are on this host: the sender's clock is in it, and the kernel
notes when it arrives. A TCP stream shows what a transfer gets.
"""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console

from whimbrel.bench import table
from whimbrel.bench.report import machine, spread
from whimbrel.bench.shaped import Ends, linked_pair
from whimbrel.model.link import LinkShape
from whimbrel.model.units import format_rate
from whimbrel.network import netns
from whimbrel.network.shaping import delay_by

PORT = 5201
PAYLOAD_BYTES = 1400
FRAME_BYTES = PAYLOAD_BYTES + 8 + 20 + 14  # as the token bucket counts it: with UDP, IP and Ethernet
BUFFER_BYTES = 64 << 20
MOST_OFFERED_BPS = 190e6  # what a Python sender keeps up
QUIET_S = 0.5
MOST_LATE_S = 0.003
STREAM_WARM_SHARE = 0.5  # of a stream's time, until it has found the rate
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 32, 33, 35
_NUMBERED = struct.Struct("=Qq")
_Context = multiprocessing.get_context("spawn")  # no fork: the caller may have threads

HEADINGS = (
    "link asked",
    "load",
    "offered",
    "carried",
    "lost",
    "out of order",
    "delay p50",
    "p99",
    "off by",
    "queue",
    "relay",
)


@dataclass(frozen=True)
class Load:
    """`share` of the link's rate, or `bps` where that is more than can be offered or there is none; for `seconds`."""

    name: str
    share: float
    bps: float
    seconds: float

    def offered_bps(self, shape: LinkShape) -> float:
        return min(shape.rate_bps * self.share or self.bps, self.bps)


CASES = (
    LinkShape(rate_bps=100e6, delay_ms=50.0),
    LinkShape(rate_bps=75e6, delay_ms=150.0),
    LinkShape(rate_bps=200e6, delay_ms=50.0),
    LinkShape(rate_bps=1e9, delay_ms=2.0),
    LinkShape(delay_ms=10.0),
)
IDLE = Load("idle", 0.01, 1e6, 2.0)
BELOW = Load("below the rate", 0.95, MOST_OFFERED_BPS, 4.0)
ABOVE = Load("above the rate", 1.5, 300e6, 3.0)
STREAM = Load("TCP stream", 0.0, 0.0, 6.0)


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one load: rates in bits per second of frames, `delay_ms` of those that arrived, `lost` and
    `reordered` in datagrams, `relay_cpus` in processors that the link's relay kept busy meanwhile."""

    offered_bps: float
    carried_bps: float
    sent: int
    lost: int
    reordered: int
    delay_ms: dict[str, float] | None
    relay_cpus: float = 0.0


def _send(namespace: str, address: str, rate_bps: float, seconds: float, pipe: Connection) -> None:
    """Datagrams at this rate, in portions of a millisecond at most; says how many and for how long (s)."""
    netns.enter(Path(namespace))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)  # it does not wait for the link
        sock.connect((address, PORT))
        padding = bytes(PAYLOAD_BYTES - _NUMBERED.size)
        per_s = rate_bps / 8 / FRAME_BYTES
        begin = now = time.monotonic()
        due, number = begin, 0
        while now - begin < seconds:
            # whoever was kept waiting for a processor does not catch up: that would be above the rate for a while
            due = max(due, now - MOST_LATE_S)
            while due <= now:
                sock.send(_NUMBERED.pack(number, time.time_ns()) + padding)
                number += 1
                due += 1 / per_s
            time.sleep(0.0005)
            now = time.monotonic()
    pipe.send((number, now - begin))


def crossing(ends: Ends, rate_bps: float, seconds: float) -> Crossing:
    """Send at `rate_bps` for `seconds` and collect what arrives."""
    into, out = _Context.Pipe(duplex=False)
    sock = netns.call(Path(ends.destination), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.settimeout(QUIET_S)
    sock.bind((ends.address, PORT))
    sender = _Context.Process(target=_send, args=(ends.source, ends.address, rate_bps, seconds, out), daemon=True)
    begin_s, relay_s = time.monotonic(), _cpu_s(ends.relay)
    sender.start()
    out.close()
    numbers: list[int] = []
    delays_ms: list[float] = []
    arrived_ns: list[int] = []
    try:
        while True:
            try:
                data, control, _, _ = sock.recvmsg(2048, 64)
            except TimeoutError:
                if not sender.is_alive() or (into.poll() and numbers):
                    break
                continue
            number, sent_ns = _NUMBERED.unpack_from(data)
            seconds_part, nanoseconds = struct.unpack("=qq", control[0][2][:16])
            at_ns = seconds_part * 10**9 + nanoseconds
            numbers.append(number)
            arrived_ns.append(at_ns)
            delays_ms.append((at_ns - sent_ns) / 1e6)
        sent, took_s = into.recv()
    finally:
        sock.close()
        _end(sender)
        into.close()
    span_s = (arrived_ns[-1] - arrived_ns[0]) / 1e9 if len(arrived_ns) > 1 else 0.0
    return Crossing(
        offered_bps=sent * FRAME_BYTES * 8 / took_s,
        carried_bps=(len(numbers) - 1) * FRAME_BYTES * 8 / span_s if span_s else 0.0,
        sent=sent,
        lost=sent - len(set(numbers)),
        reordered=sum(later < earlier for earlier, later in itertools.pairwise(numbers)),
        delay_ms=_percentiles(delays_ms),
        relay_cpus=(_cpu_s(ends.relay) - relay_s) / (time.monotonic() - begin_s),
    )


def _cpu_s(pid: int) -> float:
    if not pid:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _end(process: BaseProcess) -> None:
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    found = spread(values)
    return None if found is None else {**found, "p99": sorted(values)[int(len(values) * 0.99)], "max": max(values)}


def _stream(namespace: str, address: str, seconds: float) -> None:
    netns.enter(Path(namespace))
    data = bytes(1 << 20)
    with socket.create_connection((address, PORT)) as connection:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            connection.sendall(data)


def stream_bps(ends: Ends, seconds: float) -> float:
    """What one TCP connection carries (bits of data per second) once it has found the rate."""
    with netns.call(Path(ends.destination), lambda: socket.create_server((ends.address, PORT))) as server:
        sender = _Context.Process(target=_stream, args=(ends.source, ends.address, seconds), daemon=True)
        sender.start()
        try:
            server.settimeout(20)
            connection, _ = server.accept()
            with connection:
                begin, counted, since = time.monotonic(), 0, 0.0
                while data := connection.recv(1 << 20):
                    now = time.monotonic()
                    if now - begin > seconds * STREAM_WARM_SHARE:
                        counted += len(data) if since else 0
                        since = since or now
                return counted * 8 / (now - since) if since and now > since else 0.0
        finally:
            _end(sender)


def run(console: Console, *, cases: Sequence[LinkShape] = CASES) -> dict[str, Any]:
    """Measure every link under every load; prints a table."""
    runs: list[dict[str, Any]] = []
    for shape in cases:
        with linked_pair(shape) as ends:
            for load in (IDLE, BELOW, *([ABOVE] if 0 < shape.rate_bps * ABOVE.share <= ABOVE.bps else [])):
                found = crossing(ends, load.offered_bps(shape), load.seconds)
                runs.append(_entry(shape, load.name, found))
            carried_bps = stream_bps(ends, STREAM.seconds)
            runs.append({"link": title(shape), "load": STREAM.name, "asked": msgspec.to_builtins(shape),
                         "carried_bps": carried_bps})  # fmt: skip
        console.print(f"{title(shape)} done", highlight=False)
    table.show(console, HEADINGS, [_cells(entry) for entry in runs])
    return {
        "machine": machine(),
        "parameters": {"links": [msgspec.to_builtins(shape) for shape in cases], "delay_by": delay_by()},
        "runs": runs,
        "summary": summary(runs),
    }


def title(shape: LinkShape) -> str:
    rate = format_rate(shape.rate_bps) if shape.rate_bps else "no limit"
    return f"{rate}, {shape.delay_ms:g} ms"


def _entry(shape: LinkShape, load: str, found: Crossing) -> dict[str, Any]:
    delay = found.delay_ms["p50"] if found.delay_ms else None
    return {
        "link": title(shape),
        "load": load,
        "asked": msgspec.to_builtins(shape),
        "queue_bytes": shape.queue_limit_bytes if shape.rate_bps else 0,
        "delay_off": None if delay is None else delay / shape.delay_ms - 1,
        **msgspec.to_builtins(found),
    }


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per link: asked against measured. The delay is that of the load below the rate."""
    entries = []
    for link in dict.fromkeys(entry["link"] for entry in runs):
        by_load = {entry["load"]: entry for entry in runs if entry["link"] == link}
        below, above = by_load[BELOW.name], by_load.get(ABOVE.name)
        asked = below["asked"]
        entries.append(
            {
                "link": link,
                "asked_rate_bps": asked["rate_bps"],
                "asked_delay_ms": asked["delay_ms"],
                "delay_ms": below["delay_ms"],
                "delay_off": below["delay_off"],
                "idle_delay_ms": by_load[IDLE.name]["delay_ms"],
                "carried_bps": below["carried_bps"],
                "lost": below["lost"],
                "reordered": below["reordered"],
                "rate_bps": above["carried_bps"] if above else None,
                "stream_bps": by_load[STREAM.name]["carried_bps"],
            }
        )
    return entries


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    carried = format_rate(entry["carried_bps"])
    delay = entry.get("delay_ms")
    if delay is None:
        return entry["link"], entry["load"], "-", carried, *["-"] * 7
    return (
        entry["link"],
        entry["load"],
        format_rate(entry["offered_bps"]),
        carried,
        f"{entry['lost']} of {entry['sent']}",
        str(entry["reordered"]),
        table.ms(delay["p50"]),
        table.ms(delay["p99"]),
        f"{entry['delay_off']:+.1%}" if entry["load"] != ABOVE.name else "-",
        f"{delay['max'] - entry['asked']['delay_ms']:.0f} ms" if entry["load"] == ABOVE.name else "-",
        f"{entry['relay_cpus']:.0%} CPU",
    )
