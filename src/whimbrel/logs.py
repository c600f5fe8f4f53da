"""How controller and agent write their logs, on standard error: lines for people, or JSON objects for programs."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

Format = Literal["text", "json"]


def configure(form: Format) -> None:
    """What libraries log goes the same way, from warnings on."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
    ]
    if form == "text":
        # Standard output is often a file here: standard error is never buffered.
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
        return
    shared += [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.dict_tracebacks]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(default=str)],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
