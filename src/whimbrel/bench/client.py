"""The user: a client of the demo service that measures, from outside, what a migration does to it.

    python -m whimbrel.bench.client --host 10.77.1.1 --port 7000 --memory-mb 200

It runs in the user's network namespace for as long as it is needed, and sends numbered UDP requests at
1,000/s and, in parallel, one request at a time on one TCP connection. One command a line on standard input,
one JSON object a line on standard output:

    mark quiet     the quiet phase begins here (else: the last 2 s before `mark start`, after the last window)
    mark start     the migration begins
    mark end       it is over; answers with the window's figures once every request is answered or 3 s passed
    digest         asks for the CRC-32 of the service's memory and compares it with what it must be
    noise SECONDS  what this client measures when nothing moves: one window a second
    stop           (or end of input) ends

Standard library only, so that it runs wherever there is a Python.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from whimbrel.bench import loops
from whimbrel.bench.outage import Trace, outage, spread
from whimbrel.workloads.service import expected_digest

QUIET_NS = 2_000_000_000
TAIL_S = 0.3  # the migration's last steps may still disturb after it reported its end
LOST_AFTER_S = 3.0
TCP_PATIENCE_S = 15.0
PRIORITIES = {"sender": 30, "TCP user": 25, "receiver": 20}


class Client:
    """The control process: starts the loops, marks windows, computes figures."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.target = (str(args.host), int(args.port))
        self.memory_mb = int(args.memory_mb)
        self.shared = loops.Shared()
        run = os.urandom(8)
        sock = loops.udp_socket()
        scale = 0 if args.no_realtime else 1
        shared, target = self.shared, self.target
        tasks: tuple[tuple[str, Callable[[], None]], ...] = (
            ("receiver", lambda: loops.receive_datagrams(shared, sock, run)),
            ("sender", lambda: loops.send_datagrams(shared, sock, target, run, args.udp_rate)),
            ("TCP user", lambda: loops.talk_tcp(shared, target, args.tcp_rate, args.answer_timeout)),
        )
        self.children = {loops.fork(loop, scale * PRIORITIES[name]): name for name, loop in tasks}
        self.quiet_ns = self.last_end_ns = time.monotonic_ns()
        self.quiet_marked = False
        self.start_ns = 0

    def close(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.children = {}

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Until both protocols were answered once; the quiet phase begins then."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            udp, tcp = (self.shared.trace(protocol, 0, time.monotonic_ns()) for protocol in ("udp", "tcp"))
            if any(udp.answered_ns) and any(tcp.answered_ns):
                self.quiet_ns = self.last_end_ns = time.monotonic_ns()
                return {"event": "ready"}
            time.sleep(0.02)
        silent = [name for name, trace in (("UDP", udp), ("TCP", tcp)) if not any(trace.answered_ns)]
        host, port = self.target
        return {
            "event": "error",
            "error": f"{host}:{port} did not answer by {' and '.join(silent)} within {timeout_s:g} s: "
            "is the service running, and is there a way to it from here?",
        }

    def mark(self, what: str) -> dict[str, Any]:
        now_ns = time.monotonic_ns()
        if what == "quiet":
            self.quiet_ns, self.quiet_marked = now_ns, True
            return {"event": "quiet"}
        if what == "start":
            if not self.quiet_marked:
                self.quiet_ns = max(self.last_end_ns, now_ns - QUIET_NS)
            self.start_ns = now_ns
            return {"event": "start"}
        if what == "end" and self.start_ns:
            result = self.window(self.quiet_ns, self.start_ns, now_ns)
            self.start_ns, self.quiet_marked = 0, False
            self.last_end_ns = time.monotonic_ns()
            return result
        return {"event": "error", "error": f"`mark {what}` is not known, or came without `mark start`"}

    def settle(self, from_ns: int, to_ns: int) -> tuple[Trace, Trace]:
        """Both traces of [from, to), once everything is answered or patience is over."""
        begin = time.monotonic()
        while True:
            udp, tcp = (self.shared.trace(protocol, from_ns, to_ns) for protocol in ("udp", "tcp"))
            waited_s = time.monotonic() - begin
            pending_tcp = not tcp.heard_later and not (tcp.answered_ns and tcp.answered_ns[-1])
            if not (udp.lost and waited_s < LOST_AFTER_S) and not (pending_tcp and waited_s < TCP_PATIENCE_S):
                return udp, tcp
            time.sleep(0.05)

    def window(self, quiet_ns: int, start_ns: int, end_ns: int) -> dict[str, Any]:
        time.sleep(TAIL_S)
        to_ns = end_ns + int(TAIL_S * 1e9)
        udp, tcp = self.settle(start_ns, to_ns)
        quiet = {protocol: self.shared.trace(protocol, quiet_ns, start_ns) for protocol in ("udp", "tcp")}
        shared, now_ns = self.shared, time.monotonic_ns()
        result: dict[str, Any] = {
            "event": "window",
            "quiet_ms": (start_ns - quiet_ns) / 1e6,
            "window_ms": (end_ns - start_ns) / 1e6,
            "lost": udp.lost,
            "resets": shared.events_between(loops.TCP_RESETS, shared.resets_ns, start_ns, now_ns),
            "counter_ok": shared.events_between(loops.TCP_FAULTS, shared.faults_ns, quiet_ns, now_ns) == 0,
            "quiet_lost": quiet["udp"].lost,
            "duplicates": shared.head[loops.UDP_DUPLICATES],
            "damaged": shared.head[loops.UDP_DAMAGED],
            "client_late_ms": shared.most_late_ms(start_ns, to_ns),
        }
        for protocol, trace in (("udp", udp), ("tcp", tcp)):
            seen = outage(quiet[protocol], trace, start_ns)
            result[f"requests_{protocol}"] = len(trace.sent_ns)
            result[f"outage_{protocol}_ms"] = None if seen is None else seen.outage_ms
            result[f"outage_{protocol}_at_ms"] = None if seen is None else seen.at_ms
            result[f"quiet_{protocol}_ms"] = spread(quiet[protocol].delays_ms())
        return result

    def noise(self, seconds: int) -> dict[str, Any]:
        """The same figures for windows of one second in which nothing moves: the floor of what is seen."""
        begin_ns = time.monotonic_ns()
        time.sleep(seconds)
        udp, tcp = self.settle(begin_ns, time.monotonic_ns())
        result: dict[str, Any] = {"event": "noise", "windows": seconds, "lost": udp.lost}
        for protocol, trace in (("udp", udp), ("tcp", tcp)):
            outages = []
            for second in range(seconds):
                start_ns = begin_ns + second * 1_000_000_000
                part = self.shared.trace(protocol, start_ns, start_ns + 1_000_000_000)
                if seen := outage(trace, part, start_ns):
                    outages.append(seen.outage_ms)
            result[f"outage_{protocol}_ms"] = spread(outages)
            result[f"delay_{protocol}_ms"] = spread(trace.delays_ms())
            result[f"requests_{protocol}"] = len(trace.sent_ns)
        result["client_late_ms"] = self.shared.most_late_ms(begin_ns, time.monotonic_ns())
        return result

    def digest(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Every byte of the service's memory against what its number of writes says it must be."""
        answer = b""
        try:
            with socket.create_connection(self.target, timeout=timeout_s) as conn:
                conn.sendall(b"digest\n")
                while not answer.endswith(b"\n"):
                    data = conn.recv(4096)
                    if not data:
                        raise ConnectionResetError("closed by the service")
                    answer += data
            writes, digest = (int(word) for word in answer.split())
        except (OSError, ValueError) as error:
            return {"event": "digest", "ok": False, "error": f"no digest from the service: {error}"}
        return {"event": "digest", "ok": digest == expected_digest(writes, self.memory_mb), "writes": writes}

    def obey(self, line: str) -> dict[str, Any] | None:
        """The answer to one command; None to stop. A loop that died is reported, not measured around."""
        for pid, name in self.children.items():
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                del self.children[pid]
                return {"event": "error", "error": f"the client's {name} process ended unexpectedly"}
        match line.split():
            case ["mark", what]:
                return self.mark(what)
            case ["digest"]:
                return self.digest()
            case ["noise", seconds] if seconds.isdigit() and int(seconds) > 0:
                return self.noise(int(seconds))
            case ["stop"]:
                return None
            case _:
                return {"event": "error", "error": f"unknown command {line.strip()!r}"}


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def read_commands() -> Iterator[str]:
    """Lines of standard input as they come; ends when the other side closes or a signal asks to end."""
    pending = b""
    while True:
        *lines, pending = pending.split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
        select.select([0], [], [])
        data = os.read(0, 4096)
        if not data:
            return
        pending += data


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    option = parser.add_argument
    option("--host", required=True, help="IPv4 address of the service")
    option("--port", type=int, default=7000)
    option("--memory-mb", type=int, default=200, help="what the service was started with")
    option("--udp-rate", type=float, default=1000.0, help="UDP requests per second")
    option("--tcp-rate", type=float, default=1000.0, help="most TCP requests per second")
    option("--answer-timeout", type=float, default=20.0, help="seconds until a TCP connection is given up")
    option("--ready-timeout", type=float, default=10.0, help="seconds to wait for the first answers")
    option("--no-realtime", action="store_true", help="run the loops at normal priority")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us; it closes our input
    client = Client(args)
    try:
        ready = client.wait_ready(args.ready_timeout)
        say(ready)
        if ready["event"] != "ready":
            return 1
        for line in read_commands():
            answer = client.obey(line)
            if answer is None:
                break
            say(answer)
    except BrokenPipeError:
        pass  # nobody reads any more
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
