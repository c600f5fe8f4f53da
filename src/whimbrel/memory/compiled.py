"""The compiled parts of Whimbrel: each lies beside its source, which it knows by its digest."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path

from whimbrel.model.errors import StepFailed


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """Of `name`.c; Python's lock is not held while it is called. Raises StepFailed when it was not built, or from
    another source than is there."""
    source = Path(__file__).with_name(f"{name}.c")
    try:
        lib = ctypes.CDLL(str(source.with_suffix(".so")))
    except OSError as error:
        raise StepFailed(f"a compiled part of Whimbrel is not there ({error}): run `make setup`") from error
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(lib, "SOURCE"))) != digest.encode():
        raise StepFailed(f"the compiled part {name} of Whimbrel is of another version: run `make setup`")
    return lib
