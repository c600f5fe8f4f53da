"""Where a consumer of the MEC interfaces takes its notifications."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

from live_controller import wait_until


class Inbox:
    """Takes notifications at `url`, of any path. `status`: what it answers; `Location`: to here, for a redirection."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.paths: list[str] = []
        self.status = 204
        inbox = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.paths.append(self.path)
                inbox.got.append(json.loads(body))
                self.send_response(inbox.status)
                if inbox.status == 307:
                    self.send_header("Location", f"{inbox.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Inbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, which: Callable[[Any], bool], what: str) -> Any:
        """The first message that is meant."""
        wait_until(lambda: any(which(one) for one in list(self.got)), f"{what}; there came {self.got}", 20.0)
        return next(one for one in self.got if which(one))
