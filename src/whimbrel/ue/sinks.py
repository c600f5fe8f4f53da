"""Where a user's equipment tells what it sees: lines of JSON, and a controller. Neither ever holds the user up."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import BinaryIO, Protocol

import httpx
import msgspec

from whimbrel.client.token import authorization, token_of
from whimbrel.model.application import Discovery, Session
from whimbrel.model.errors import BadInput, Refused, Unreachable
from whimbrel.model.radio import HandoverOrder, HandoverRecord, Orders, UserEvent

PATH = "/v1/users/{user}/events"
DISCOVERY = "/v1/users/{user}/discovery"
DISCOVERY_TIMEOUT_S = 660.0  # an image may have to be brought and unpacked first
WAITING = 64  # events that wait for a controller that does not answer; older ones are dropped
TIMEOUT_S = 2.0
RETRY_S = 0.5


class Sink(Protocol):
    def tell(self, event: UserEvent) -> None: ...

    def close(self) -> None: ...


class Lines:
    """One JSON object a line. A reader that has gone is no failure."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._is_read = True

    def tell(self, event: UserEvent) -> None:
        if self._is_read:
            try:
                self._stream.write(msgspec.json.encode(event) + b"\n")
                self._stream.flush()
            except BrokenPipeError:
                self._is_read = False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class Posts:
    """HTTP POST of each event to a controller, in a thread of its own; its answer may have orders in it. A report that
    did not reach the controller is dropped and counted: the next one says what is true by then. A handover
    that took place is told once only: its record is kept until a report has come through again."""

    def __init__(
        self,
        address: str,
        user: str,
        on_order: Callable[[HandoverOrder], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        """`address`: ``unix:PATH``, ``tcp:HOST:PORT`` or an ``http`` or ``https`` URL (as it is). Raises BadInput."""
        self._url, transport = _where(address, PATH.format(user=user))
        self._address = address
        self._client = httpx.Client(
            transport=transport, timeout=TIMEOUT_S, trust_env=False, headers=authorization(token_of(os.environ))
        )
        self._on_order, self._on_trouble = on_order, on_trouble
        self._waiting: queue.Queue[UserEvent | None] = queue.Queue(WAITING)
        self._kept: deque[UserEvent] = deque(maxlen=WAITING)
        self._in_trouble = False
        self.taken = self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="posts", daemon=True)
        self._thread.start()

    def tell(self, event: UserEvent) -> None:
        while True:
            try:
                return self._waiting.put_nowait(event)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    oldest = self._waiting.get_nowait()
                    if oldest is not None:
                        self._not_taken(oldest)

    def close(self) -> None:
        """Waits for what is on its way, not for a controller that does not answer."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(TIMEOUT_S + 1.0)
        self._client.close()

    def _not_taken(self, event: UserEvent) -> None:
        if isinstance(event, HandoverRecord):
            self._kept.append(event)
        else:
            self.dropped += 1

    def _work(self) -> None:
        while (event := self._next()) is not None:
            try:
                orders = self._post(event)
            except (httpx.HTTPError, msgspec.MsgspecError, RuntimeError, OSError) as error:
                if _was_heard(error):
                    self.dropped += 1
                else:
                    self._not_taken(event)
                if not self._in_trouble:
                    self._in_trouble = True
                    self._on_trouble(f"the controller {self._address} takes no reports ({_short(error)}): going on")
                time.sleep(RETRY_S)
                continue
            self._in_trouble = False
            self.taken += 1
            for order in orders.orders:
                self._on_order(order)

    def _next(self) -> UserEvent | None:
        """What is kept comes first, once the controller answers."""
        if self._kept and not self._in_trouble:
            return self._kept.popleft()
        return self._waiting.get()

    def _post(self, event: UserEvent) -> Orders:
        answer = self._client.post(
            self._url, content=msgspec.json.encode(event), headers={"content-type": "application/json"}
        )
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=Orders) if answer.content.strip() else Orders()


def _was_heard(error: Exception) -> bool:
    """The controller had it, and would not take it the next time either."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_client_error
    return isinstance(error, msgspec.MsgspecError)


def _short(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    return f"{type(error).__name__}: {error}".rstrip(": ")


def discover(address: str, user: str, application: str) -> Session:
    """Ask the controller for an application and wait until it is ready (`coordinated` III). Raises Refused with the
    controller's reason, Unreachable when it does not answer; BadInput as `Posts`."""
    url, transport = _where(address, DISCOVERY.format(user=user))
    url = url.removesuffix("/events") + "/discovery" if url.endswith("/events") else url
    headers = authorization(token_of(os.environ))
    with httpx.Client(transport=transport, timeout=DISCOVERY_TIMEOUT_S, trust_env=False, headers=headers) as client:
        try:
            answer = client.post(
                url,
                content=msgspec.json.encode(Discovery(application=application)),
                headers={"content-type": "application/json"},
            )
            if answer.is_error:
                raise Refused(_detail(answer))
            return msgspec.json.decode(answer.content, type=Session)
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            raise Unreachable(f"the controller {address} does not answer to discovery ({_short(error)})") from error


def _detail(answer: httpx.Response) -> str:
    try:
        return str(msgspec.json.decode(answer.content)["detail"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"the controller answered with status {answer.status_code}"


def _where(address: str, path: str) -> tuple[str, httpx.HTTPTransport | None]:
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return f"http://controller{path}", httpx.HTTPTransport(uds=rest, verify=False)
    try:
        url = httpx.URL(f"http://{rest}{path}" if kind == "tcp" else address)
        if url.scheme in ("http", "https") and url.host and not (kind == "tcp" and url.port is None):
            return str(url), None
    except httpx.InvalidURL:
        pass
    raise BadInput(f"{address!r} is no place to report to: write unix:/PATH, tcp:HOST:PORT or an http URL")
