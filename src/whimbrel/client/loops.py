"""The three loops of the measuring client, each a process of its own, and the memory they share.

UDP sender, UDP receiver and the TCP user are separate processes so that none waits for another's interpreter
lock. They run with real-time priority where that is allowed: a real user's device shares no processor with
the nodes, so waiting for a processor must not be measured as outage. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import signal
import socket
import struct
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from whimbrel.client.contract import Figures, Side, Talk
from whimbrel.client.outage import Trace

RING = 1 << 19  # requests remembered: more than 8 minutes at 1,000/s
MOST_SETTLED = 20_000  # told at a time
EVENTS = 1024  # resets, and counter faults, whose times are remembered
HEADER = struct.Struct("!8sQ")  # run id, request number
DATAGRAM_BYTES = 64
BUFFER_BYTES = 16 << 20
RETRY_CONNECT_S = 0.02
LATE_LIMIT_NS = 50_000_000  # a sender that was stopped for longer starts a new schedule instead of a burst

_SO_TIMESTAMPNS = 35
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
_TIMESPEC = struct.Struct("qq")
_TIMEVAL = struct.Struct("ll")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)

# words of the shared memory's head; the last three are the control process's question to the others
(UDP_SENT, UDP_DUPLICATES, UDP_DAMAGED, TCP_SENT, TCP_RESETS, TCP_FAULTS, TCP_CONNECTED,
 ASKED, ASKED_FROM_NS, ASKED_TO_NS) = range(10)  # fmt: skip
_HEAD_WORDS = 64


@dataclass
class Shared:
    """Times of all requests, written by the loops and read by the control process.

    Every word has one writer, and words are stored whole, so no lock is needed.
    """

    map: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8 * (_HEAD_WORDS + 6 * RING + 2 * EVENTS)), repr=False)

    def __post_init__(self) -> None:
        words = memoryview(self.map).cast("q")
        starts = [_HEAD_WORDS + i * RING for i in range(7)]
        self.head = words[:_HEAD_WORDS]
        self.udp_sent, self.udp_answered, self.udp_late, self.tcp_sent, self.tcp_answered, self.tcp_processing = (
            words[start : start + RING] for start in starts[:6]
        )
        self.resets_ns = words[starts[6] : starts[6] + EVENTS]
        self.faults_ns = words[starts[6] + EVENTS : starts[6] + 2 * EVENTS]

    def event(self, counter: int, times: memoryview, now_ns: int) -> None:
        times[self.head[counter] % EVENTS] = now_ns
        self.head[counter] += 1

    def numbers(self, protocol: str, from_ns: int, to_ns: int) -> range:
        """Numbers of the requests sent in [from, to), among the last `RING`."""
        count, sent = (
            (self.head[UDP_SENT], self.udp_sent) if protocol == "udp" else (self.head[TCP_SENT], self.tcp_sent)
        )
        known = range(max(0, count - RING + 1), count)
        first, last = (bisect_left(known, when, key=lambda n: sent[n % RING]) for when in (from_ns, to_ns))
        return known[first:last]

    def trace(self, protocol: str, from_ns: int, to_ns: int) -> Trace:
        """The requests of ``"udp"`` or ``"tcp"`` sent in [from, to), as they stand now."""
        sent, answered = (self.udp_sent, self.udp_answered) if protocol == "udp" else (self.tcp_sent, self.tcp_answered)
        now_ns = time.monotonic_ns()
        numbers = self.numbers(protocol, from_ns, to_ns)
        later = self.numbers(protocol, to_ns, now_ns)
        heard_ns = next((when for n in later if (when := answered[n % RING])), 0)
        return Trace(
            [sent[n % RING] for n in numbers],
            [answered[n % RING] for n in numbers],
            until_ns=heard_ns or now_ns,
            heard_later=bool(heard_ns),
        )

    def settled(self, protocol: str, first: int, patience_ns: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Requests from number `first` on, up to the first that may still be answered: (sent, answered, processing) in
        ns, answered 0 for one given up. Also the number to go on with."""
        is_udp = protocol == "udp"
        count, sent, answered = (
            (self.head[UDP_SENT], self.udp_sent, self.udp_answered)
            if is_udp
            else (self.head[TCP_SENT], self.tcp_sent, self.tcp_answered)
        )
        now_ns = time.monotonic_ns()
        rows: list[tuple[int, int, int]] = []
        number = max(first, count - RING + 1)
        while number < count and len(rows) < MOST_SETTLED:
            slot = number % RING
            sent_ns, answered_ns = sent[slot], answered[slot]
            # the one user of TCP asks one at a time: a later request means that this one's connection broke
            given_up = now_ns - sent_ns >= patience_ns or (not is_udp and number < count - 1)
            if not answered_ns and not given_up:
                break
            rows.append((sent_ns, answered_ns, 0 if is_udp or not answered_ns else self.tcp_processing[slot]))
            number += 1
        return number, rows

    def most_late_ms(self, from_ns: int, to_ns: int) -> float:
        """The most that the UDP sender was behind its schedule in [from, to)."""
        return max((self.udp_late[n % RING] for n in self.numbers("udp", from_ns, to_ns)), default=0) / 1e6

    def events_between(self, counter: int, times: memoryview, from_ns: int, to_ns: int) -> int:
        return sum(1 for when in times[: min(EVENTS, self.head[counter])] if from_ns <= when < to_ns)


def prepare_process(priority: int) -> bool:
    """Make this process keep time: real-time priority, exact timers, no garbage collection; ends with its
    parent. Returns False when real-time priority is not allowed here."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.disable()
    if priority <= 0:
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return False
    return True


def fork(loop: Callable[[], None], priority: int) -> int:
    """Run `loop` in a child process; returns its pid. The child ends with its parent."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the control process decides when to end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prepare_process(priority)
        if os.getppid() == parent:
            loop()
    finally:
        os._exit(1)


def widen_buffers(sock: socket.socket) -> None:
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)


def udp_socket() -> socket.socket:
    """Not connected on purpose: an ICMP error about one request must not fail another one's call."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    widen_buffers(sock)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.bind(("0.0.0.0", 0))
    return sock


def receive(sock: socket.socket) -> tuple[bytes, int]:
    """Data and the moment it reached this host's kernel, on the monotonic clock (ns).

    The kernel stamps packets with the wall clock, which may be set; the stamp is therefore turned at once
    into an age.
    """
    data, ancillary, _flags, _peer = sock.recvmsg(4096, _ANCILLARY_BYTES)
    while True:
        now_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        if time.monotonic_ns() - now_ns < 20_000:
            break
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(value) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
            age_ns = wall_ns - (seconds * 1_000_000_000 + nanoseconds)
            if 0 <= age_ns < 1_000_000_000:
                return data, now_ns - age_ns
    return data, now_ns


def sleep_until(due_ns: int) -> None:
    while (left_ns := due_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)


def send_datagrams(shared: Shared, sock: socket.socket, target: tuple[str, int], run: bytes, rate: float) -> None:
    """Send numbered datagrams at `rate` per second, on absolute deadlines."""
    sent, answered, late, head = shared.udp_sent, shared.udp_answered, shared.udp_late, shared.head
    interval_ns = int(1e9 / rate)
    due_ns = time.monotonic_ns() + interval_ns
    number = 0
    while True:
        sleep_until(due_ns)
        slot = number % RING
        datagram = HEADER.pack(run, number).ljust(DATAGRAM_BYTES, b"w")
        answered[slot] = 0
        now_ns = time.monotonic_ns()
        late[slot] = now_ns - due_ns
        sent[slot] = now_ns
        head[UDP_SENT] = number + 1
        with contextlib.suppress(OSError):  # no way there now: this request stays without answer
            sock.sendto(datagram, target)
        number += 1
        due_ns = now_ns if now_ns - due_ns > LATE_LIMIT_NS else due_ns
        due_ns += interval_ns


def receive_datagrams(shared: Shared, sock: socket.socket, run: bytes) -> None:
    """Note when each numbered datagram came back, and whether it came back whole and once."""
    answered, head = shared.udp_answered, shared.head
    while True:
        try:
            data, when_ns = receive(sock)
        except OSError:
            continue
        if len(data) < HEADER.size or not data.startswith(run):
            continue  # an answer to an earlier client on this port
        number = HEADER.unpack_from(data)[1]
        slot = number % RING
        if number >= head[UDP_SENT] or len(data) != DATAGRAM_BYTES or data.count(b"w", HEADER.size) != 48:
            head[UDP_DAMAGED] += 1
        elif answered[slot]:
            head[UDP_DUPLICATES] += 1
        else:
            answered[slot] = when_ns


def connect(target: tuple[str, int], answer_timeout_s: float) -> socket.socket | None:
    """One attempt of at most a second; None when it did not succeed."""
    try:
        conn = socket.create_connection(target, timeout=1.0)
    except OSError:
        return None
    conn.settimeout(None)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    conn.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    # the kernel's timeout, because Python's own needs a second system call for each answer
    timeout = _TIMEVAL.pack(int(answer_timeout_s), int(answer_timeout_s % 1 * 1e6))
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    return conn


def read_line(conn: socket.socket, limit: int = 1 << 20) -> tuple[bytes, int]:
    """One line of an answer without its end, and when its last part came (ns). OSError: broken."""
    answer = b""
    while not answer.endswith(b"\n"):
        data, when_ns = receive(conn)
        if not data or len(answer) > limit:
            raise ConnectionResetError("closed by the service")
        answer += data
    return answer[:-1], when_ns


class Desk:
    """Where one process of the client answers the control process: a pipe, and words of the shared memory that say
    that there is a question."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._served = 0
        self.reader, self._writer = os.pipe()

    def serve(self, figures: Callable[[int, int], Figures]) -> None:
        """Answer if something was asked since the last time."""
        head = self._shared.head
        if head[ASKED] == self._served:
            return
        self._served = head[ASKED]
        try:
            found = figures(head[ASKED_FROM_NS], head[ASKED_TO_NS])
        except (OSError, ValueError) as error:
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        line = json.dumps({"asked": self._served, **found}).encode() + b"\n"
        while line:
            line = line[os.write(self._writer, line) :]


def work(side: Side, desk: Desk) -> None:
    """The loop of one of the user's other doings."""
    while True:
        desk.serve(side.figures)
        side.step()


def talk_tcp(shared: Shared, target: tuple[str, int], talk: Talk, answer_timeout_s: float, desk: Desk) -> None:
    """One request at a time, at most `talk.rate` per second, on one connection; reconnects."""
    sent, answered, head = shared.tcp_sent, shared.tcp_answered, shared.head
    interval_ns = int(1e9 / talk.rate)
    conn: socket.socket | None = None
    number = 0
    due_ns = 0
    while True:
        desk.serve(lambda from_ns, to_ns, conn=conn: talk.figures(conn, from_ns, to_ns))  # type: ignore[misc]
        if conn is None:
            conn = greeted(target, talk, answer_timeout_s)
            head[TCP_CONNECTED] = int(conn is not None)
            if conn is None:
                time.sleep(RETRY_CONNECT_S)
                continue
        sleep_until(due_ns)
        slot = number % RING
        answered[slot] = 0
        now_ns = time.monotonic_ns()
        sent[slot] = now_ns
        number += 1
        head[TCP_SENT] = number
        due_ns = now_ns + interval_ns
        try:
            when_ns = talk.ask(conn, number)
            shared.tcp_processing[slot] = talk.processing_ns  # first: who sees the answer must see this, too
            answered[slot] = when_ns
        except ValueError:
            answered[slot] = time.monotonic_ns()
            shared.event(TCP_FAULTS, shared.faults_ns, time.monotonic_ns())
        except OSError:
            shared.event(TCP_RESETS, shared.resets_ns, time.monotonic_ns())
            talk.broken()
            conn.close()
            conn = None


def greeted(target: tuple[str, int], talk: Talk, answer_timeout_s: float) -> socket.socket | None:
    """A new connection that the service answers on; None when there is none to be had."""
    conn = connect(target, answer_timeout_s)
    if conn is None:
        return None
    try:
        talk.greet(conn)
    except (OSError, ValueError):
        conn.close()
        return None
    return conn
