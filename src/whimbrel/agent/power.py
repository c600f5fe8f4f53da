"""A server's computing power: measured once, kept in a file with the machine's identity, measured anew when that has
changed or when asked.

All agents of one machine share the file, so that a lab of many nodes measures once, and not all at the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from whimbrel.agent import primes
from whimbrel.model.errors import StepFailed
from whimbrel.model.node import ComputingPower

TIMEOUT_S = 60.0


def machine_identity() -> str:
    """Changes with the installation, the kind or number of processors, and the Python that does the work."""
    told = [platform.machine(), platform.python_version(), str(os.cpu_count())]
    files = (Path("/etc/machine-id"), Path("/sys/devices/virtual/dmi/id/product_name"))
    told += [file.read_text().strip() for file in files if file.exists()]
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            told.append(line)
            break
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def kept(file: Path) -> ComputingPower | None:
    """What was measured on this very machine; None when nothing was, or the file says nothing usable."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=ComputingPower)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None
    return found if found.machine == machine_identity() and found.events_per_s > 0 else None


def computing_power(file: Path, *, anew: bool = False) -> ComputingPower:
    """The kept one, or a new one after half a second of work. Blocks. Raises StepFailed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = None if anew else kept(file)
        if found is None:
            found = _measure()
            fresh = file.with_name(f"{file.name}.new")
            fresh.write_bytes(msgspec.json.encode(found))
            fresh.replace(file)
        return found
    finally:
        os.close(lock)


def _measure() -> ComputingPower:
    """In a process of its own: the agent's other threads would share the interpreter with the work."""
    argv = [sys.executable, "-I", "-S", primes.__file__]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        events_per_s = float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise StepFailed(f"the computing power cannot be measured: {error}") from error
    return ComputingPower(events_per_s=events_per_s, measured_unix_s=time.time(), machine=machine_identity())
