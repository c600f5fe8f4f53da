"""How fast memory would cross, asked before anything is prepared: over the link, and by way of shared storage."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from whimbrel.migrate.pagechannel import LinkProbe
from whimbrel.model.errors import WhimbrelError
from whimbrel.wire.calls import TakeProbe
from whimbrel.wire.rpc import Peer

STORAGE_PROBE_MB = 4
PATIENCE_S = 2.0


async def link_bytes_per_s(peer: Peer) -> float:
    """By `LinkProbe`, over the agents' connection. 0 when nobody can tell."""
    probe = LinkProbe()
    while probe.size_bytes:
        start = time.monotonic()
        try:
            await peer.call(TakeProbe(payload=bytes(probe.size_bytes)), timeout_s=PATIENCE_S)
        except WhimbrelError:
            break
        probe.took(time.monotonic() - start)
    return probe.bytes_per_s


async def storage_bytes_per_s(directory: Path, name: str) -> float:
    """By writing some MB of noise to a file of that name, and until they are there. 0 when it fails. Storage that
    hangs lets nobody go: another process writes, and is given up."""
    probe = directory / name
    start = time.monotonic()
    wrote = await _ran("dd", "if=/dev/urandom", f"of={probe}", "bs=1M", f"count={STORAGE_PROBE_MB}", "conv=fsync")
    taken_s = time.monotonic() - start
    await _ran("rm", "-f", str(probe))
    return (STORAGE_PROBE_MB << 20) / taken_s if wrote else 0.0


async def _ran(*argv: str) -> bool:
    """Whether it ended well and soon."""
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*argv, stdin=null, stdout=null, stderr=null, start_new_session=True)
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await process.wait() == 0
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
