"""The controller process: configuration in, HTTP out, SIGTERM ends it cleanly."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import structlog
import uvicorn
from uvicorn.config import LOGGING_CONFIG

from whimbrel.controller.config import DEFAULT_CONFIG, load
from whimbrel.controller.http.app import create_app
from whimbrel.controller.listener import open_listener
from whimbrel.controller.parts import Controller
from whimbrel.logs import configure

GRACE_S = 5

log = structlog.get_logger()


class _Server(uvicorn.Server):
    """Ends the event streams before it waits for its connections: they would go on as long as a migration."""

    def __init__(self, config: uvicorn.Config, controller: Controller) -> None:
        super().__init__(config)
        self._controller = controller

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._controller.end_streams()
        await super().shutdown(sockets)


def run(config_file: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises BadInput or Conflict before it serves."""
    config = load(config_file or DEFAULT_CONFIG)
    configure(config.log)
    listener = open_listener(config.listen)
    try:
        if not config.listen.is_local:
            log.warning(
                "tokens cross the network as they are: put the API behind a proxy with TLS", listen=str(config.listen)
            )
        controller = Controller(config)
        server = _Server(
            uvicorn.Config(
                create_app(controller),
                log_level="warning",
                log_config=None if config.log == "json" else LOGGING_CONFIG,
                access_log=False,
                timeout_graceful_shutdown=GRACE_S,
                lifespan="on",
            ),
            controller,
        )
        # The server raises the signal that ended it once more when it is done: that is not a failure.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        log.info("controller listens", listen=str(config.listen), nodes=len(config.nodes))
        asyncio.run(server.serve(sockets=[listener]))
        return 0 if server.started else 1
    finally:
        listener.close()
        if config.listen.path:
            Path(config.listen.path).unlink(missing_ok=True)
