"""How controller and agent write their logs, on standard error: lines for people, or JSON objects for programs."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any, Literal, TextIO

import structlog

Format = Literal["text", "json"]
MOST_FRAMES = 12
"""Of a traceback: the innermost."""


def configure(form: Format) -> None:
    """What libraries log goes the same way, from warnings on."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
    ]
    if form == "text":
        # Standard output is often a file here: standard error is never buffered.
        structlog.configure(
            processors=[
                *shared,
                structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
                structlog.dev.ConsoleRenderer(
                    colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"), exception_formatter=_plain
                ),
            ],
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )
        return
    shared += [structlog.processors.TimeStamper(fmt="iso", utc=True), _traceback]
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


# Local variables stay out of both forms: a request's are its headers, with the caller's token or session.
_traceback = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=MOST_FRAMES)
)


def _plain(out: TextIO, exc_info: Any) -> None:
    lines = traceback.format_exception(*exc_info, limit=-MOST_FRAMES)
    out.write("\n" + "".join(lines).rstrip("\n"))
