"""The destination's half of one migration: a process of its own, started by the agent.

It takes the pages, restores, opens the network, and serves the remaining pages. It is not part of the agent so
that an agent that dies after the commit takes no pages with it. Before the commit it dies with the agent (its
standard input ends), with the source (the page channel ends) or by ABORT, and takes the half-restored tree along.

Forked from the nursery (`nursery_main`), with FD as argument: a socket on which its `ReceiveOrder` comes, with two
descriptors: the service's log (or who becomes the CRIU that restores), and the agent's keeper. Events go to stdout as
JSON lines: ``listening``, ``running``, ``filled``, ``failed``.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from whimbrel.checkpoint.huge_pages import forbid_huge_pages
from whimbrel.checkpoint.images import forget_masters
from whimbrel.checkpoint.swrk import CriuWorker, launch_bound
from whimbrel.memory import comparing, placing
from whimbrel.memory.keeper import Kept
from whimbrel.memory.lazy import LazyServer
from whimbrel.memory.needed import Needs
from whimbrel.memory.placing import Filling
from whimbrel.memory.ranges import Ranges, total_bytes
from whimbrel.memory.reserve import Reserve
from whimbrel.memory.store import SPARE_BYTES, PageStore, short_of_memory
from whimbrel.memory.supply import Supply
from whimbrel.migrate import failpoints
from whimbrel.migrate.arrangement import Arrangement
from whimbrel.migrate.backlog import unpack
from whimbrel.migrate.beginning import BEGUN, Beginning, let_run
from whimbrel.migrate.intake import PageIntake
from whimbrel.migrate.laps import Laps
from whimbrel.migrate.late import LatePages, later_than_restore
from whimbrel.migrate.pagechannel import FillReport, Kind, PageChannel, RestoreOrder, RestoreStart
from whimbrel.migrate.pulse import Beat
from whimbrel.migrate.receiveorder import MAX_ORDER_BYTES, ReceiveOrder
from whimbrel.migrate.resending import Resending
from whimbrel.migrate.restoreplan import rehearse
from whimbrel.migrate.settling import Appearing
from whimbrel.migrate.staging.host import StageHost
from whimbrel.migrate.takefiles import FileArrival
from whimbrel.migrate.words import COMMITTED, WHOLE, write_word
from whimbrel.model.errors import ProtocolMismatch, StepFailed, WhimbrelError
from whimbrel.model.units import PAGE_BYTES
from whimbrel.network.port import LONG_HOLD_S, ServicePort
from whimbrel.network.udp_buffers import widen
from whimbrel.network.unread import deliver
from whimbrel.runtime.adopt import adopt
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines.handover import STDIO_BASE, Handover

AT_WORK = "receiving"  # the process's short name from its order on
SOURCE_SILENCE_S = 60.0
WIDE_BUFFERS_S = 2.0
STRANGER_S = 2.0
SWITCH_S = 0.0001
HANDOVER_WAIT_S = 0.02
ANNOUNCED_S = 4.0
HEARD_S = 1.0
"""So long the source has to read why it failed here: what it sends meanwhile would else make the connection break."""
HOT_WAIT_S = 0.002
RESTORE_BYTES, SCATTERED_BYTES = 4 << 20, 16 << 20
"""What CRIU takes for itself, and pages that are placed one here and one there, for which nothing is given back."""
LAST_BYTES = 64 << 20
"""So much at most the last pages take when they come, and as much the restore to place them."""


def say(event: str, **fields: object) -> None:
    """Tell the agent; an agent that is gone is no reason to stop."""
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode({"event": event, "at_s": time.time(), **fields}) + b"\n")


class Receiver:
    """`output_fd` is the service's log, or a connection to who becomes its CRIU if the landing is `foreign`;
    `keeper_fd` is where the agent takes the userfaultfds (see `memory.keeper`)."""

    def __init__(self, order: ReceiveOrder, output_fd: int, keeper_fd: int) -> None:
        self.order = order
        self.landing = order.landing
        self._output_fd = output_fd
        self.work = Path(order.work_dir)
        self.stage = Path(order.stage_dir)
        self.images = self.stage / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        expected_pages = 0 if order.staged else order.expected_pages
        last_pages = min(LAST_BYTES // PAGE_BYTES, order.expected_pages)
        self.store = PageStore(expected_pages, ahead_pages=0 if order.staged else last_pages)
        self.reserve = Reserve(last_pages * PAGE_BYTES)
        self._used_before_last = 0
        self.intake = PageIntake(self.store)
        self.host: StageHost | None = None
        self.cgroup = Cgroup(self.landing.cgroup)
        self.files = FileArrival(self.landing.files, order.token)
        self.beat = Beat(self.work)
        self.committed = False
        self.early_pages = 0
        self._aborted = False
        self._gate = threading.Lock()
        self._undo_gate = threading.Lock()
        self._undone = False
        self.channel: PageChannel | None = None
        self.kept = Kept(keeper_fd)
        self.lazy = LazyServer(self.kept.keep)
        self.supplies: dict[int, Supply] = {}
        self.begun: Beginning | None = None
        self._resending: Resending | None = None
        self._announcing: threading.Thread | None = None
        self.late: LatePages | None = None
        self.appearing = Appearing(self.landing.rootfs) if self.landing.shared else None
        self.criu: CriuWorker | None = None
        self.port = ServicePort(Path(order.netns_dir))

    # --- before the freeze: pages and files ---------------------------------------------------------------
    def accept(self) -> PageChannel:
        self.listener = socket.create_server((self.order.listen_host, 0))
        if self.order.staged and self.stage.parent == self.work:  # not on storage that both nodes see
            self.host = StageHost(
                self.order.listen_host, self.stage, self.order.token, run_dir=Path(self.order.criu_run_dir),
                complain=lambda error: say("warning", error=error),
            )  # fmt: skip
        say("listening", port=self.listener.getsockname()[1], stage_port=self.host.port if self.host else 0,
            files_port=self.files.listen(self.order.listen_host))  # fmt: skip
        return self.accept_again()

    def accept_again(self, within_s: float = SOURCE_SILENCE_S) -> PageChannel:
        """The next connection of the source; others are sent away. Raises OSError when it does not come."""
        deadline = time.monotonic() + within_s
        while True:
            self.listener.settimeout(max(0.001, deadline - time.monotonic()))
            sock, _ = self.listener.accept()
            sock.settimeout(STRANGER_S)
            channel = PageChannel(sock)
            with contextlib.suppress(WhimbrelError, OSError):
                if hmac.compare_digest(channel.expect(Kind.HELLO), self.order.token.encode()):
                    sock.settimeout(None)
                    return channel
            say("warning", error="whoever connected to the page channel does not know its token")
            channel.close()

    def take(self, channel: PageChannel) -> RestoreOrder:
        """Store what comes until the order to restore."""
        round_number = 0
        while True:
            kind, number, ranges, size = channel.receive_header()
            if self.begun is not None:
                self.begun.check()
            if kind is Kind.PAGES:
                self.intake.take(channel, number, ranges, size, recent=round_number > 0)
                continue
            payload = channel.receive_payload(size)
            if kind is Kind.ROUND:
                round_number += 1
                self.store.merge()
                self._used_before_last = self.store.used_pages
                channel.send(Kind.ACK, number)
            elif kind is Kind.PROBE:
                channel.send(Kind.ACK, number)
            elif kind is Kind.IMAGES and self.begun is None:  # CRIU would be reading them
                self._take_images(payload)
            elif kind is Kind.START and self.begun is None:
                self.begun = self._begin(msgspec.msgpack.decode(payload, type=RestoreStart))
                self.store.merge()  # CRIU needs some time, and the last pages are few
            elif kind is Kind.RESTORE:
                return msgspec.msgpack.decode(payload, type=RestoreOrder)
            elif kind is Kind.ABORT:
                raise StepFailed(payload.decode(errors="replace"))
            else:
                raise ProtocolMismatch(f"{kind.name} is not due here")

    def _take_images(self, payload: bytes) -> None:
        for name, content in msgspec.msgpack.decode(payload, type=dict[str, bytes]).items():
            if "/" in name or name.startswith("."):
                raise ProtocolMismatch(f"{name!r} is no name of an image")
            (self.images / name).write_bytes(content)

    # --- the freeze: restore ------------------------------------------------------------------------------
    def start_criu(self) -> None:
        """Ready before the freeze; the restored tasks are born in the container's control groups."""
        self.images_fd = os.open(self.images, os.O_RDONLY | os.O_DIRECTORY)
        landing = self.landing
        self.root, launch = Path(landing.rootfs), launch_bound
        binds: list[tuple[Path, Path]] = []
        self.stdio = dict.fromkeys((1, 2), self._output_fd)
        if landing.foreign:
            # CRIU wants a mount point that it may take apart; the engine's own may be none, or needed elsewhere
            self.root = self.work / "root"
            self.root.mkdir()
            binds = [(Path(landing.rootfs), self.root)]
            launch = Handover(self._output_fd).launch
            self.stdio = {stream: STDIO_BASE + stream for stream in range(3)}
        forbid_huge_pages()
        self.criu = CriuWorker(
            netns=Path(self.order.netns_dir) / self.order.service,
            run_dir=Path(self.order.criu_run_dir),
            cgroup_procs=self.cgroup.procs_files(),
            own_cgroupns=landing.own_cgroupns,
            binds=binds,
            pass_fds=[self.images_fd] if landing.foreign else [self.images_fd, self._output_fd],
            launch=launch,
        )
        self.port.info(self.order.service)  # opens its sockets: none of that in the freeze; CRIU starts meanwhile
        rehearse(self.work / "rehearsal")
        self.criu.warm_up()
        threading.Thread(target=self._hold_reserve, name="reserve", daemon=True).start()

    def _hold_reserve(self) -> None:
        self.store.wait_touched()  # what comes first is needed first
        if not short_of_memory(self.reserve.size_bytes + SPARE_BYTES):
            self.reserve.hold()

    def _release_reserve(self, start: RestoreStart, order: RestoreOrder) -> None:
        """As much as the last pages and CRIU take: to release it costs a processor. All where CRIU places all pages."""
        self.store.touch_no_more()
        coming = sum(total_bytes(ranges) for ranges in later_than_restore(order).values())
        last_bytes = (self.store.used_pages - self._used_before_last) * PAGE_BYTES + coming
        whole = start.staged or not start.lazy
        release = partial(self.reserve.release, None if whole else last_bytes + RESTORE_BYTES + SCATTERED_BYTES)
        threading.Thread(target=release, name="reserve", daemon=True).start()

    def _begin(self, start: RestoreStart) -> Beginning:
        assert self.criu is not None
        arrangement = None
        if not start.staged:
            lazy = self.lazy if start.lazy else None
            arrangement = Arrangement(
                self.images, self.store, lazy=lazy, supplies=self.supplies, interrupt=self.criu.interrupt
            )
        if self.landing.foreign:
            forget_masters(self.images)
        if not start.lazy:
            write_word(self.work, WHOLE)
        return Beginning(
            self.criu,
            start,
            arrangement,
            images_fd=self.images_fd,
            root=self.root,
            stdio=self.stdio,
            external=self.landing.external,
            foreign=self.landing.foreign,
        )

    def restore(self, channel: PageChannel, order: RestoreOrder) -> int:
        """Restore up to the moment before the first instruction, agree with the source, let it run."""
        begun = self.begun
        if begun is None:
            raise ProtocolMismatch("RESTORE is not due before START")
        assert self.criu is not None
        held_since_s = time.monotonic() - order.held_ms / 1e3
        self._release_reserve(begun.start, order)
        needs = self.needs = Needs(Path(self.order.needed_file), order.needed)
        laps, handover, arrangement = Laps(), begun.handover, begun.arrangement
        self.files.wait(order.file_passes, timeout_s=SOURCE_SILENCE_S)
        laps.lap("files")
        if order.behind or order.beside:
            self.late = LatePages(self, channel)
        if arrangement is not None:
            arrangement.begin(later_than_restore(order), self.late, needs)
        if self.appearing is not None:
            self.appearing.wait(order.written)
            laps.lap("visible")
        with ThreadPoolExecutor(1, "buffers") as beside_criu:
            for point in (BEGUN, "post-restore", "pre-resume"):
                if point == BEGUN:
                    begun.wait()
                else:
                    self.criu.advance(point)
                failpoints.wait_at(f"receive.{point}")
                laps.lap(f"criu to {point}")
                if point == BEGUN and arrangement is not None:
                    arrangement.settled()  # the page maps are read from here on
                    laps.lap("settle")
                if point == "post-restore":  # all processes with their sockets are there
                    sockets_s = time.monotonic()
                    widening = beside_criu.submit(self._widen)
                    if handover is not None and handover.has_all(HANDOVER_WAIT_S):
                        self.lazy.laid_out()
                        if not failpoints.armed("receive.fill"):
                            # Each page placed now is one less to wait for after the resume. Not before, while CRIU lays
                            # out the mappings: the two would wait for each other at each of them.
                            self.lazy.begin_fill(Filling.HOT_PAGES)
            if handover is not None:
                handover.wait()
                if not failpoints.armed("receive.fill"):
                    self.lazy.begin_fill()  # and not before: CRIU was seen to take twice as long to the last point
            threading.Timer(WIDE_BUFFERS_S, widening.result()).start()
        if order.datagrams:  # ahead of all that waits at the gateways
            lost = len(order.datagrams) - deliver(self.port.path(self.order.service), order.datagrams)
            if lost:
                say("warning", error=f"{lost} datagrams that it had not read are not for an address that it has here")
        laps.lap("buffers")
        # Where many are hot: to place one takes 1 us now, and 40 us of the program when it waits for it.
        self.lazy.wait_for_hot(HOT_WAIT_S)
        laps.lap("hot pages")
        failpoints.wait_at("receive.ready")
        if not self.criu.alive():
            raise StepFailed("CRIU died at the destination before the service was handed over")
        if self.landing.pid_file:
            Path(self.landing.pid_file).write_text(str(self.criu.restored_pid))
        if self.late is not None:
            self.late.check()
        held_long = time.monotonic() - held_since_s >= LONG_HOLD_S
        resending = self._resending = Resending(
            self.port, self.order.service, self.images, sockets_s, held_long=held_long
        )
        channel.send(Kind.READY)
        if self.late is not None:
            self.late.wait_for_go()
        else:
            channel.expect(Kind.GO)
        if order.beside:
            self._check_beside(unpack(order.beside))
            self.lazy.wait_for_hot(HOT_WAIT_S)
        # ------------------------------- the point of no return: the source has committed -----------------
        self.commit()
        failpoints.wait_at("receive.committed")
        laps.lap("agreement")
        # Whatever fails from here on must not end this process: it holds the pages of a running service.
        self._forward(lambda: self.port.open(self.order.service))
        self.early_pages = self.lazy.filled_pages
        let_run(self.criu)
        held_s = time.monotonic() - held_since_s
        self._forward(lambda: self._announce(held_s))
        laps.lap("resume and announce")
        # Only now: the source answers with Release, and a gateway must not send to a closed port.
        self._forward(lambda: channel.send(Kind.RUNNING, payload=msgspec.msgpack.encode(laps.taken_ms)))
        resending.go_on()
        pid, landing = self.criu.restored_pid, self.landing
        if landing.runc_id:
            self._forward(lambda: adopt(Path(landing.runc_root), landing.runc_id, pid))
        say("running", pid=pid)
        return pid

    def _announce(self, held_s: float) -> None:
        repeating = self.port.announce(self.order.service, self.order.stand_in, held_s=held_s)
        self._announcing = repeating if held_s >= LONG_HOLD_S else None

    def _widen(self) -> Callable[[], None]:
        return widen(self.cgroup.pids())

    def _check_beside(self, beside: Mapping[int, Ranges]) -> None:
        """What was to cross beside the restore did so before GO, on the same connection."""
        for ns_pid, ranges in beside.items():
            lacking = self.supplies[ns_pid].missing(ranges)
            if lacking:
                raise StepFailed(f"{lacking} pages of process {ns_pid} never arrived at the destination")

    @staticmethod
    def _forward(step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:
            say("warning", error=f"{type(error).__name__}: {error}")

    # --- after the commit: the rest -----------------------------------------------------------------------
    def fill(self, channel: PageChannel) -> FillReport:
        failpoints.wait_at("receive.fill")
        self.lazy.begin_fill()
        self.lazy.laid_out()
        placed, fill_ms = self.lazy.filled()
        self.reserve.release()  # not before: that takes a processor
        arranged = self.begun.arrangement if self.begun is not None else None
        report = FillReport(
            faults=self.lazy.faults,
            fault_ms=self.lazy.fault_s * 1e3,
            fill_ms=fill_ms,
            filled_bytes=placed,
            early_pages=self.early_pages,
            eager_pages=arranged.eager_pages if arranged else 0,
        )
        write_word(self.work, WHOLE)
        if self.late is not None:
            self.late.stop()
        self._forward(self.files.settle)  # before the source removes its own
        with contextlib.suppress(WhimbrelError):
            channel.send(Kind.FILLED, payload=msgspec.msgpack.encode(report))
        self.kept.whole()
        self.lazy.stop()
        if self.host is not None:
            self.host.close()
        self._forward(lambda: self.needs.keep(arranged.missed() if arranged else {}))
        say("filled", **msgspec.structs.asdict(report))
        if self._resending is not None:
            self._resending.end()
        if self._announcing is not None:  # should nobody else let go what is held
            self._announcing.join(ANNOUNCED_S)
        return report

    def commit(self) -> None:
        """The file is the destination's word; the gate keeps an abort that comes at the same moment out."""
        with self._gate:
            if self._aborted:
                raise StepFailed("the agent gave the migration up at the last moment")
            write_word(self.work, COMMITTED, self.order.service)
            self.committed = True

    def abort(self) -> bool:
        """Forbid the commit; False when it has happened."""
        with self._gate:
            self._aborted = not self.committed
            return self._aborted

    def end_service(self) -> None:
        """Pages of the running service will never come. It must not go on: with this process, and its agent if that is
        not there just now, the last one goes who keeps absent pages from reading as zeros."""
        if not (self.work / WHOLE).exists():
            with contextlib.suppress(WhimbrelError, OSError):
                self.port.close(self.order.service)
            self.cgroup.kill_all()

    def give_up(self, reason: str) -> None:
        """Nothing of a half-restored tree stays, then the source is told; the agent undoes what the agent did. Whoever
        comes first gives the reason: the other one only meets the consequences."""
        with self._undo_gate:
            if self._undone:
                return
            self._undone = True
            try:
                if self.host is not None:
                    self.host.close()
                if self.criu is not None:
                    self.criu.interrupt()
                    if self.begun is not None:
                        self.begun.end()
                    self.criu.kill()
                self.cgroup.kill_all()
            finally:
                say("failed", error=reason, committed=False)
                if self.channel is not None:
                    with contextlib.suppress(WhimbrelError, OSError):
                        self.channel.send(Kind.ABORT, payload=reason.encode())


def main() -> int:
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        message, fds, _, _ = socket.recv_fds(orders, MAX_ORDER_BYTES, 2)
    if not message:
        return 0  # the agent had no use for this process
    order = msgspec.json.decode(message, type=ReceiveOrder)
    Path("/proc/self/comm").write_text(AT_WORK)
    # Threads that fill memory and answer faults take turns with the one that restores. Python lets each have 5 ms.
    sys.setswitchinterval(SWITCH_S)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each process that the service forks brings a descriptor
    try:
        for load in (placing.library, comparing.library):
            load()  # not when the first page comes, or is to be placed
        receiver = Receiver(order, *fds)
    except WhimbrelError as error:
        say("failed", error=str(error), committed=False)
        return 1

    def watch_agent() -> None:
        os.read(0, 1)
        if receiver.abort():
            try:
                receiver.give_up("the agent there gave the migration up, or ended")
            finally:
                os._exit(1)

    threading.Thread(target=watch_agent, name="watch-agent", daemon=True).start()
    receiver.beat.start()
    try:
        failpoints.wait_at("receive.start")
        receiver.start_criu()
        channel = receiver.channel = receiver.accept()
        restore_order = receiver.take(channel)
        receiver.restore(channel, restore_order)
        receiver.fill(channel)
        return 0
    except Exception as error:
        if receiver.committed:
            receiver.end_service()
            say("failed", error=str(error), committed=True)
        else:
            receiver.give_up(str(error))
            if receiver.channel is not None:
                receiver.channel.drain(HEARD_S)
        return 1
