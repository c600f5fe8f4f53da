"""`whimbrel check`: what this host can do. Every feature is tried, on our own memory or in throw-away places,
because configuration files and version numbers promise things that kernels do not keep."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import msgspec

from whimbrel.agent import engine_checks, kernel_probes
from whimbrel.checkpoint.swrk import criu_path
from whimbrel.memory.softdirty import has_soft_dirty
from whimbrel.memory.uffd import missing_support
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.units import format_bytes
from whimbrel.network.shaping import delay_by

MINIMUM_CRIU = (4, 2)  # it widened the page-server header that we speak
MINIMUM_RUNC = (1, 1)
MINIMUM_SHM_BYTES = 256 << 20
SETUP = "run scripts/setup"


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` is what was found; `fix` what to do about it, empty when there is nothing to do."""

    name: str
    status: Status
    reason: str
    fix: str = ""


Found = tuple[Status, str, str]


def run_checks() -> list[Check]:
    """All checks, in the order in which they need each other; about half a second. Never raises."""
    results = [_check("root", _root)]
    is_root = results[0].status is Status.OK
    for name, probe, needs_root in _CHECKS:
        if needs_root and not is_root:
            results.append(Check(name=name, status=Status.WARN, reason="not tried without root", fix="run as root"))
        else:
            results.append(_check(name, probe))
    return results


def _check(name: str, probe: Callable[[], Found]) -> Check:
    try:
        status, reason, fix = probe()
    except (OSError, WhimbrelError, subprocess.SubprocessError) as error:
        status, reason, fix = Status.FAIL, " ".join(str(error).split()), "see the reason"
    return Check(name=name, status=status, reason=reason, fix=fix)


def _root() -> Found:
    if os.geteuid() == 0:
        return Status.OK, "effective user is root", ""
    return (
        Status.FAIL,
        f"effective user is {os.geteuid()}",
        "run as root: the agent freezes and restores processes",
    )


def _kernel() -> Found:
    machine = platform.machine()
    if machine in ("x86_64", "aarch64"):
        return Status.OK, f"Linux {platform.release()} on {machine}", ""
    return Status.FAIL, f"Linux {platform.release()} on {machine}", "use an x86-64 or arm64 machine"


def _write_tracking() -> Found:
    problem = missing_support() or kernel_probes.write_tracking_fault()
    if problem is None:
        return Status.OK, "userfaultfd WP_ASYNC and PAGEMAP_SCAN found exactly the pages we wrote", ""
    fix = "use Linux 6.7 or newer with CONFIG_USERFAULTFD"
    return Status.FAIL, problem.partition(": use Linux")[0], fix


def _soft_dirty() -> Found:
    if has_soft_dirty():
        return Status.OK, "the kernel has it: `tmpfs` and `shared` use CRIU's own pre-dump", ""
    return Status.OK, "absent, and not needed: write tracking takes its place", ""


def _criu() -> Found:
    program = criu_path()
    fix = f"{SETUP}, or name a CRIU >= {MINIMUM_CRIU[0]}.{MINIMUM_CRIU[1]} in WHIMBREL_CRIU"
    if shutil.which(program) is None:
        return Status.FAIL, f"{program} is not there", fix
    version = _version(program, "--version")
    if version is None or version[:2] < MINIMUM_CRIU:
        return Status.FAIL, f"{program} has version {_dotted(version)}", fix
    verdict = _output(program, "check")
    if "Looks good" not in verdict:
        last = verdict.strip().splitlines()[-1:] or ["it said nothing"]
        return Status.FAIL, f"`{program} check` of {_dotted(version)}: {last[0]}", fix
    return Status.OK, f"{_dotted(version)} at {program}, `criu check` passes", ""


def _lazy_restore() -> Found:
    if "is supported" in _output(criu_path(), "check", "--feature", "uffd-noncoop"):
        return Status.OK, "CRIU can restore pages on demand (userfaultfd, non-cooperative events)", ""
    fix = "use a kernel with CONFIG_USERFAULTFD; until then --strategy hybrid does not work"
    return Status.FAIL, "CRIU cannot restore pages on demand here", fix


def _runc() -> Found:
    fix = "install the package runc"
    program = shutil.which("runc")
    if program is None:
        return Status.FAIL, "runc is not on PATH", fix
    version = _version(program, "--version")
    if version is None or version[:2] < MINIMUM_RUNC:
        return Status.FAIL, f"runc has version {_dotted(version)}, 1.1 is needed", fix
    return Status.OK, f"{_dotted(version)} at {program}", ""


def _program(name: str, missing: Status, purpose: str) -> Callable[[], Found]:
    def probe() -> Found:
        program = shutil.which(name)
        if program is None:
            return (
                missing,
                f"{name} is not on PATH: {purpose}",
                f"{SETUP}, or install the package that has it",
            )
        return Status.OK, program, ""

    return probe


def _links() -> Found:
    missing = kernel_probes.missing_links()
    if missing:
        fix = f"use a kernel with {', '.join(f'CONFIG_{kind.upper()}' for kind in missing)}"
        return Status.FAIL, f"cannot make {', '.join(missing)} links in a new network namespace", fix
    return Status.OK, "veth, bridge and VXLAN links can be made in a new network namespace", ""


def _link_delay() -> Found:
    if delay_by() == "netem":
        return Status.OK, "netem delays the links of labs", ""
    if Path("/dev/net/tun").exists():
        return Status.OK, "this kernel has no netem: a relay of ours delays the links of labs", ""
    return Status.WARN, "labs cannot delay links: no netem, no /dev/net/tun", "load the module sch_netem or tun"


def _overlay() -> Found:
    place = Path("/var/lib/whimbrel")
    parent = place if place.is_dir() else place.parent
    with tempfile.TemporaryDirectory(prefix="whimbrel-check-", dir=parent) as scratch:
        kernel_probes.try_overlay(Path(scratch))
    return Status.OK, f"mounted once below {parent}", ""


def _cgroups() -> Found:
    refused = kernel_probes.unwritable_cgroups()
    if refused is None:
        return Status.FAIL, "no control-group hierarchy is mounted", "mount cgroup2 at /sys/fs/cgroup"
    if refused:
        names = ", ".join(str(path) for path in refused)
        return (
            Status.FAIL,
            f"no group can be made in {names}",
            "mount them writable (containers: run with --privileged)",
        )
    return Status.OK, "a group can be made in every hierarchy", ""


def _shared_memory() -> Found:
    free_bytes = shutil.disk_usage("/dev/shm").free
    text = f"{format_bytes(free_bytes)} free"
    if free_bytes < MINIMUM_SHM_BYTES:
        return Status.WARN, text, "remount it larger: `mount -o remount,size=50% /dev/shm`"
    return Status.OK, text, ""


def _engine(judge: Callable[[], engine_checks.Verdict]) -> Callable[[], Found]:
    """An engine that is not in order is no reason not to run our own containers."""

    def probe() -> Found:
        in_order, reason, fix = judge()
        return Status.OK if in_order else Status.WARN, reason, fix

    return probe


def _output(*argv: str) -> str:
    """What a program prints, on either stream; its exit code does not matter."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout + done.stderr


def _version(*argv: str) -> tuple[int, ...] | None:
    match = re.search(r"\d+(?:\.\d+)+", _output(*argv))
    return tuple(int(part) for part in match.group().split(".")) if match else None


def _dotted(version: tuple[int, ...] | None) -> str:
    return ".".join(map(str, version)) if version else "unknown"


_CHECKS: tuple[tuple[str, Callable[[], Found], bool], ...] = (
    ("kernel", _kernel, False),
    ("write tracking", _write_tracking, False),
    ("soft-dirty", _soft_dirty, False),
    ("CRIU", _criu, True),
    ("lazy restore", _lazy_restore, True),
    ("runc", _runc, False),
    ("skopeo", _program("skopeo", Status.FAIL, "images cannot be read"), False),
    ("umoci", _program("umoci", Status.FAIL, "images cannot be unpacked"), False),
    ("rsync", _program("rsync", Status.WARN, "the strategies tmpfs and diskless need it"), False),
    ("nft", _program("nft", Status.WARN, "gateways with `nat` and the benchmark's baseline need it"), False),
    ("network links", _links, True),
    ("link delay", _link_delay, True),
    ("overlayfs", _overlay, True),
    ("control groups", _cgroups, True),
    ("/dev/shm", _shared_memory, False),
    ("Docker", _engine(engine_checks.docker), True),
    ("Podman", _engine(engine_checks.podman), True),
    ("LXC", _engine(engine_checks.lxc), True),
)
