"""The user: a process that talks to a service and measures, from outside, what a migration does to it.

    python control.py --client .../workloads/memory/client.py --host 10.77.1.1 --port 7000 --set MEMORY_MB=200

It runs in the user's network namespace for as long as it is needed. What it says to the service is the workload's
`client.py` (see `whimbrel.client.contract`); when and how it measures is here. One command a line on standard input,
one JSON object a line on standard output:

    mark quiet     the quiet phase begins here (else: the last 2 s before `mark start`, after the last window)
    mark start     the migration begins
    mark end       it is over; answers with the window's report once every request is answered or time is up
    settled        the requests that were answered or given up since this was asked last, one by one
    noise SECONDS  what this client measures when nothing moves: one window a second
    stop           (or end of input) ends

Standard library only, so that it runs wherever there is a Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from whimbrel.client import loops
from whimbrel.client.contract import COUNTS, Figures, Place, Side, User
from whimbrel.client.outage import Trace, outage, spread

QUIET_NS = 2_000_000_000
TAIL_S = 0.3  # the migration's last steps may still disturb after it reported its end
LOST_AFTER_S = 3.0
TCP_PATIENCE_S = 15.0
SIDE_PATIENCE_S = 60.0
PRIORITIES = {"sender": 30, "TCP user": 25, "receiver": 20}


class Client:
    """The control process: starts the loops, marks windows, computes figures."""

    def __init__(self, user: User, args: argparse.Namespace) -> None:
        self.user, self.place = user, user.place
        self.protocols = ("udp", "tcp") if user.udp else ("tcp",)
        self.shared = loops.Shared()
        self.desks = {"TCP user": loops.Desk(self.shared)}
        scale = 0 if args.no_realtime else 1
        shared, target = self.shared, self.place.target
        talk, timeout_s, desk = user.talk(), self.place.timeout_s, self.desks["TCP user"]
        tasks: dict[str, Callable[[], None]] = {
            "TCP user": lambda: loops.talk_tcp(shared, target, talk, timeout_s, desk)
        }
        if user.udp:
            run, sock = os.urandom(8), loops.udp_socket()
            tasks["receiver"] = lambda: loops.receive_datagrams(shared, sock, run)
            tasks["sender"] = lambda: loops.send_datagrams(shared, sock, target, run, args.udp_rate)
        for side in user.sides():
            self.desks[side.name] = loops.Desk(shared)
            tasks[side.name] = self._side(side, self.desks[side.name])
        self.children = {loops.fork(loop, scale * PRIORITIES.get(name, 0)): name for name, loop in tasks.items()}
        self.quiet_ns = self.last_end_ns = time.monotonic_ns()
        self.quiet_marked = False
        self.start_ns = 0
        self.told = dict.fromkeys(self.protocols, 0)  # the next request of each that `settled` tells

    @staticmethod
    def _side(side: Side, desk: loops.Desk) -> Callable[[], None]:
        return lambda: loops.work(side, desk)

    def close(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.children = {}

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Until each protocol was answered once; the quiet phase begins then."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            traces = {name: self.shared.trace(name, 0, time.monotonic_ns()) for name in self.protocols}
            if all(any(trace.answered_ns) for trace in traces.values()):
                self.quiet_ns = self.last_end_ns = time.monotonic_ns()
                return {"event": "ready"}
            time.sleep(0.02)
        silent = [name.upper() for name, trace in traces.items() if not any(trace.answered_ns)]
        host, port = self.place.target
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
        """The report of [start, end) and its tail (see `whimbrel.client.report`)."""
        time.sleep(TAIL_S)
        to_ns = end_ns + int(TAIL_S * 1e9)
        udp, tcp = self.settle(start_ns, to_ns)
        quiet = {protocol: self.shared.trace(protocol, quiet_ns, start_ns) for protocol in ("udp", "tcp")}
        shared, now_ns = self.shared, time.monotonic_ns()
        resets = shared.events_between(loops.TCP_RESETS, shared.resets_ns, start_ns, now_ns)
        counter_ok = shared.events_between(loops.TCP_FAULTS, shared.faults_ns, quiet_ns, now_ns) == 0
        damaged = shared.head[loops.UDP_DAMAGED]
        requests = len(udp.sent_ns) + len(tcp.sent_ns)
        report: dict[str, Any] = {
            "event": "report",
            "requests": requests,
            "answered": requests - udp.lost - tcp.lost,
            "lost": udp.lost,
            "resets": resets,
            "stalls": 0,
        }
        detail: dict[str, Any] = {
            "quiet_ms": (start_ns - quiet_ns) / 1e6,
            "window_ms": (end_ns - start_ns) / 1e6,
            "counter_ok": counter_ok,
            "quiet_lost": quiet["udp"].lost,
            "duplicates": shared.head[loops.UDP_DUPLICATES],
            "damaged": damaged,
            "client_late_ms": shared.most_late_ms(start_ns, to_ns),
        }
        for protocol, trace in (("udp", udp), ("tcp", tcp)):
            seen = outage(quiet[protocol], trace, start_ns)
            report[f"outage_{protocol}_ms"] = None if seen is None else seen.outage_ms
            detail[f"requests_{protocol}"] = len(trace.sent_ns)
            detail[f"outage_{protocol}_at_ms"] = None if seen is None else seen.at_ms
            detail[f"quiet_{protocol}_ms"] = spread(quiet[protocol].delays_ms())
        report["quiet_median_ms"] = detail["quiet_tcp_ms"].get("p50")
        fine = counter_ok and damaged == 0
        for name, figures in {**self.ask(start_ns, to_ns), "check": self.check()}.items():
            for key in COUNTS:
                report[key] += figures.get(key, 0)
            fine &= bool(figures.get("ok", True))
            if figures:
                detail[name] = figures
        return {**report, "state_ok": fine, "detail": detail}

    def check(self) -> Figures:
        try:
            return self.user.check()
        except (OSError, ValueError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def ask(self, from_ns: int, to_ns: int) -> dict[str, Figures]:
        """What the other processes saw in [from, to)."""
        head = self.shared.head
        head[loops.ASKED_FROM_NS], head[loops.ASKED_TO_NS] = from_ns, to_ns
        head[loops.ASKED] += 1
        return {name: self._answer(desk, head[loops.ASKED]) for name, desk in self.desks.items()}

    def _answer(self, desk: loops.Desk, asked: int) -> Figures:
        deadline, pending = time.monotonic() + SIDE_PATIENCE_S, b""
        while select.select([desk.reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            pending += os.read(desk.reader, 1 << 16)
            *lines, rest = pending.split(b"\n")
            for line in lines:
                figures: Figures = json.loads(line)
                if figures.pop("asked") == asked:
                    return figures
            pending = rest
        return {"ok": False, "error": f"no figures within {SIDE_PATIENCE_S:g} s"}

    def noise(self, seconds: int) -> dict[str, Any]:
        """The same figures for windows of one second in which nothing moves: the floor of what is seen."""
        begin_ns = time.monotonic_ns()
        time.sleep(seconds)
        udp, tcp = self.settle(begin_ns, time.monotonic_ns())
        result: dict[str, Any] = {"event": "noise", "windows": seconds, "lost": udp.lost}
        for protocol, trace in (("udp", udp), ("tcp", tcp)) if self.user.udp else (("tcp", tcp),):
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

    def settled(self) -> dict[str, Any]:
        """The latest requests one by one (see `whimbrel.client.report.Settled`)."""
        answer: dict[str, Any] = {"event": "settled", "now_ns": time.monotonic_ns()}
        for protocol in self.protocols:
            patience_s = LOST_AFTER_S if protocol == "udp" else self.place.timeout_s
            first = self.told[protocol]
            self.told[protocol], answer[protocol] = self.shared.settled(protocol, first, int(patience_s * 1e9))
        return answer

    def obey(self, line: str) -> dict[str, Any] | None:
        """The answer to one command; None to stop. A loop that died is reported, not measured around."""
        for pid, name in self.children.items():
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                del self.children[pid]
                return {"event": "error", "error": f"the client's {name} process ended unexpectedly"}
        match line.split():
            case ["mark", what]:
                return self.mark(what)
            case ["noise", seconds] if seconds.isdigit() and int(seconds) > 0:
                return self.noise(int(seconds))
            case ["settled"]:
                return self.settled()
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
    option("--client", type=Path, required=True, help="the workload's client.py")
    option("--host", required=True, help="IPv4 address of the service")
    option("--port", type=int, default=7000)
    option("--set", action="append", default=[], metavar="NAME=VALUE", help="what the service was told (repeat)")
    option("--data", type=Path, help="the client's files, made with the image")
    option("--udp-rate", type=float, default=1000.0, help="UDP requests per second")
    option("--answer-timeout", type=float, default=20.0, help="seconds until a TCP connection is given up")
    option("--ready-timeout", type=float, default=10.0, help="seconds to wait for the first answers")
    option("--no-realtime", action="store_true", help="run the loops at normal priority")
    return parser.parse_args(argv)


def load_user(file: Path, place: Place) -> User:
    """The user that a workload's `client.py` makes for this place."""
    spec = importlib.util.spec_from_file_location("workload_client", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    user: User = module.user(place)
    return user


def prepare(user: User, timeout_s: float) -> dict[str, Any] | None:
    """Have the user prepare, again and again while the service does not answer yet; the last error if it never did."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            user.prepare()
            return None
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline or isinstance(error, FileNotFoundError):
                host, port = user.place.target
                return {"event": "error", "error": f"{host}:{port}: {error}"}
        time.sleep(0.1)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us; it closes our input
    settings = dict(setting.partition("=")[::2] for setting in args.set)
    user = load_user(args.client, Place(args.host, args.port, settings, args.data, args.answer_timeout))
    if failure := prepare(user, args.ready_timeout):
        say(failure)
        return 1
    client = Client(user, args)
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
