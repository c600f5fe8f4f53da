"""`lab up`, `lab down`, `lab status`, and a way into a node's namespace."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from whimbrel.lab import cleanup, processes, storage
from whimbrel.lab.build import build
from whimbrel.lab.config import DEFAULT_LAB_DIR, controller_socket, write_configs
from whimbrel.lab.record import claim, is_marked, prefix_reserved, recorded
from whimbrel.lab.routes import homes, wires
from whimbrel.lab.topology import (
    CONTROLLER,
    Gateway,
    Topology,
    load,
    node_address,
    router_address,
)
from whimbrel.lab.topology_checks import require_capacities
from whimbrel.model.errors import Conflict, Refused
from whimbrel.network import netns

Report = Callable[[str], None]


class LabNode(msgspec.Struct, frozen=True, kw_only=True):
    """`role` is router, controller, storage, edge, gateway or user; `address` on the underlay (a user's: in the access
    network). `pid` 0 and `alive` False: its process does not run; router and users have none and are alive
    when their namespace is there."""

    name: str
    role: str
    namespace: str
    address: str
    overlay_address: str = ""
    pid: int = 0
    alive: bool = False


class LabLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link of given rate or delay (one way), in the kernel or, with a `pid`, by a relay of ours."""

    between: tuple[str, str]
    rate_bps: float
    delay_ms: float
    queue_bytes: int
    pid: int = 0
    alive: bool = True


class LabStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`up`: every node and every link is alive. `present`: something of a lab is there, whole or not."""

    up: bool
    present: bool
    directory: str
    topology: str = ""
    controller: str = ""
    nodes: tuple[LabNode, ...] = ()
    links: tuple[LabLink, ...] = ()


def _quiet(_: str) -> None:
    pass


def lab_up(topology: Path | None = None, progress: Report = _quiet, *, lab_dir: Path = DEFAULT_LAB_DIR) -> LabStatus:
    """Bring up a lab and wait until its agents and its controller answer.

    What a dead lab left is removed first; what a failure or Ctrl-C leaves half-made is removed too.
    `progress` gets one line for each step. Raises BadInput, Conflict, Refused or StepFailed."""
    plan = load(topology)
    if os.geteuid() != 0:
        raise Refused("a lab needs root for its network namespaces: run it with sudo")
    plan = storage.within_reach(plan, progress)
    require_capacities(plan)
    with _locked(lab_dir):
        _make_way(progress, lab_dir)
        with prefix_reserved(plan):
            claim(lab_dir, plan)
            try:
                _bring_up(plan, progress, lab_dir)
            except BaseException:
                cleanup.sweep(lab_dir)
                raise
        return lab_status(lab_dir=lab_dir)


def _bring_up(plan: Topology, progress: Report, lab_dir: Path) -> None:
    processes.start_relays(plan, lab_dir, build(plan))
    progress(f"{len(plan.namespaces)} network namespaces linked")
    write_configs(plan, lab_dir)
    storage.start_storage(plan, lab_dir)
    for process in processes.lab_processes(plan, lab_dir):
        processes.start(process)
    storage.wait_until_mounted(plan, lab_dir)
    processes.wait_until_ready(plan, lab_dir, progress)


def lab_down(progress: Report = _quiet, *, lab_dir: Path = DEFAULT_LAB_DIR) -> None:
    """Remove the lab and all that its nodes run, half-made or dead as it may be. Safe to repeat."""
    if os.geteuid() != 0:
        raise Refused("removing a lab needs root: run it with sudo")
    with _locked(lab_dir):
        removed = cleanup.sweep(lab_dir)
    for line in removed:
        progress(f"removed {line}")
    if not removed:
        progress("no lab is up, nothing to remove")


def lab_status(*, lab_dir: Path = DEFAULT_LAB_DIR) -> LabStatus:
    """What is there, also of a lab that is down or broken."""
    plan = recorded(lab_dir)
    if plan is None:
        return LabStatus(up=False, present=is_marked(lab_dir), directory=str(lab_dir))
    nodes, links = tuple(_nodes(plan, lab_dir)), tuple(_links(plan, lab_dir))
    return LabStatus(
        up=all(node.alive for node in nodes) and all(link.alive for link in links),
        present=True,
        directory=str(lab_dir),
        topology=plan.name,
        controller=f"unix:{controller_socket(lab_dir)}",
        nodes=nodes,
        links=links,
    )


def run_in(node: str, *, lab_dir: Path = DEFAULT_LAB_DIR) -> AbstractContextManager[None]:
    """The calling thread is in the node's network namespace inside the block; what it opens and starts there
    stays there. Do not await inside. Raises BadInput for an unknown node, Refused without a lab."""
    return netns.entered(node_namespace(node, lab_dir=lab_dir))


def node_namespace(node: str, *, lab_dir: Path = DEFAULT_LAB_DIR) -> Path:
    """The namespace file of a node (for `network.netns.call` and `enter`)."""
    plan = recorded(lab_dir)
    if plan is None:
        raise Refused("no lab is up: run `whimbrel lab up`")
    return plan.namespace_path(node)


def _nodes(plan: Topology, lab_dir: Path) -> Iterator[LabNode]:
    def node(name: str, role: str, address: str, overlay_address: str = "", pid_file: Path | None = None) -> LabNode:
        path = plan.namespace_path(name)
        pid = processes.read_pid(pid_file) if pid_file else 0
        return LabNode(
            name=name,
            role=role,
            namespace=path.name,
            address=address,
            overlay_address=overlay_address,
            pid=pid,
            alive=bool(pid) if pid_file else path.exists(),
        )

    for name in plan.router_names:
        yield node(name, "router", _router_address(plan, name))
    address = str(node_address(plan.controller_subnet))
    yield node(CONTROLLER, "controller", address, pid_file=lab_dir / "controller.pid")
    if plan.storage is not None:
        address = str(node_address(plan.storage.subnet))
        pid_file = lab_dir / plan.storage.name / f"{storage.PROCESS}.pid"
        yield node(plan.storage.name, "storage", address, pid_file=pid_file)
    for site in plan.sites:
        overlay_address = site.overlay_address if isinstance(site, Gateway) else ""
        endpoint = plan.endpoint(site)
        yield node(site.name, endpoint.role.value, endpoint.host, overlay_address, lab_dir / site.name / "agent.pid")
    for user in plan.users:
        yield node(user.name, "user", str(plan.user_address(user, plan.gateway(user.attached[0]))))


def _router_address(plan: Topology, router: str) -> str:
    """One of its addresses: the one towards the controller, else towards a node of its own."""
    at = homes(plan)
    if at[CONTROLLER] == router:
        return str(router_address(plan.controller_subnet))
    subnets = [site.subnet for site in plan.sites if at[site.name] == router]
    return str(router_address(subnets[0])) if subnets else "-"


def _links(plan: Topology, lab_dir: Path) -> Iterator[LabLink]:
    for wire in wires(plan):
        if wire.shape.is_plain:
            continue
        pid_file = processes.relay_directory(lab_dir) / f"{wire.name}.pid"
        pid = processes.read_pid(pid_file)
        yield LabLink(
            between=(wire.a.node, wire.b.node),
            rate_bps=wire.shape.rate_bps,
            delay_ms=wire.shape.delay_ms,
            queue_bytes=wire.shape.queue_limit_bytes if wire.shape.rate_bps else 0,
            pid=pid,
            alive=bool(pid) or not pid_file.exists(),
        )


def _make_way(progress: Report, lab_dir: Path) -> None:
    status = lab_status(lab_dir=lab_dir)
    running = [node.name for node in status.nodes if node.pid]
    if status.up:
        raise Conflict(f"a lab is up already (topology {status.topology}): use it, or run `whimbrel lab down` first")
    if running:
        raise Conflict(f"a lab is half up (only {', '.join(running)} run): run `whimbrel lab down` first")
    for line in cleanup.sweep(lab_dir):
        progress(f"removed from an earlier lab: {line}")


@contextlib.contextmanager
def _locked(lab_dir: Path) -> Iterator[None]:
    """One `up` or `down` at a time. The lock is on the parent directory: the lab's own comes and goes."""
    lab_dir.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(lab_dir.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Conflict("another `whimbrel lab up` or `down` is at work: wait until it has finished") from error
    finally:
        os.close(fd)
