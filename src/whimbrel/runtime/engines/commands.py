"""Engines that are asked by running a program of theirs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence

from whimbrel.model.errors import Refused
from whimbrel.model.service import ExecResult
from whimbrel.runtime.engines.base import EngineAway

MAX_OUTPUT_BYTES = 1 << 20


async def run(argv: Sequence[str], *, timeout_s: float = 60.0, max_bytes: int = MAX_OUTPUT_BYTES) -> ExecResult:
    """Its exit code and output. Raises EngineAway when it is not installed, Refused after `timeout_s`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise EngineAway(f"{argv[0]} is not installed here") from error
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await asyncio.gather(_at_most(process.stdout, max_bytes), _at_most(process.stderr, max_bytes))
            code = await process.wait()
    except TimeoutError as error:
        raise Refused(f"`{' '.join(argv[:3])} …` ran longer than {timeout_s:g} s: it was ended") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return ExecResult(exit_code=code, stdout=out.decode(errors="replace"), stderr=err.decode(errors="replace"))


async def _at_most(stream: asyncio.StreamReader, limit: int) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: limit - len(kept)]  # the rest is read too, else the program would block
    return bytes(kept)
