"""Handovers as a network's Radio Network Information Service tells of them (ETSI GS MEC 012), for users that report
nothing themselves: their cell changes, and what they measure.

[planner]
handovers = "mec012"
[planner.handover_settings]
rnis = "http://rnis.example:8080/rni/v2"          # its base
users = { "10.100.0.1" = "ue-1" }                 # the network's addresses of users
cells = { "0000001" = "bs-1" }                    # its cell identities of base stations
callback = "http://controller.example:8077"       # how it reaches this controller; default: by a websocket
token_file = "/etc/whimbrel/rnis.token"           # with the token that it asks for; default: none

The service only tells. Orders still go to users in the answers to their reports, as with `answers`; who reports itself
is believed before the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
import msgspec
import structlog
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, InvalidURI

from whimbrel.client.token import authorization, token_in
from whimbrel.controller.handovers.answers import Answers
from whimbrel.controller.handovers.port import HandoverPort, Settings, Tell
from whimbrel.controller.mec.common import TimeStamp
from whimbrel.controller.mec.rni.models import (
    CELL_CHANGE,
    MEAS_REP_UE,
    PERIODICAL,
    AssociateId,
    CellChangeNotification,
    Ecgi,
    HoStatus,
    MeasRepUeNotification,
    dbm_of,
)
from whimbrel.controller.planning.complaints import Complaints
from whimbrel.model.errors import BadInput, WhimbrelError
from whimbrel.model.radio import HandoverRecord, Hears, LinkState, Orders, UserReport

TIMEOUT_S = 5.0
LASTS_S = 600.0
"""What is not renewed ends at the service by itself: a controller that was killed leaves nothing there."""
RENEW_S = 200.0
RETRY_S = 1.0
MOST_RETRY_S = 30.0
OWN_WORD_S = 10.0
"""Who reported itself so lately needs no network to tell of it."""
USUAL_INTERRUPTION_MS = 500.0
"""Where the service does not tell when the execution of a handover began."""
MOST_MESSAGE_BYTES = 256 << 10
PATH = "/rni/notifications"

log = structlog.get_logger()


class Mec012Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rnis: str
    users: dict[str, str]
    cells: dict[str, str]
    callback: str = ""
    token_file: str = ""


class _Lost(Exception):
    """The service is away, or has forgotten us."""


class Mec012(Answers):
    """`take` gets each notification."""

    def __init__(self, tell: Tell, settings: Settings) -> None:
        """Raises BadInput."""
        super().__init__(tell, {})
        try:
            self._settings = msgspec.convert(dict(settings), Mec012Settings)
        except msgspec.ValidationError as error:
            raise BadInput(f"[planner.handover_settings] of the port `mec012`: {error}") from None
        for name in ("rnis", "callback"):
            value = getattr(self._settings, name)
            if (value or name == "rnis") and not (
                urlsplit(value).scheme in ("http", "https") and urlsplit(value).hostname
            ):
                raise BadInput(f"[planner.handover_settings] {name} {value!r} is no address: write http://HOST:PORT/…")
        self._authorization()
        self.secret = secrets.token_urlsafe(16)
        self._tell = tell
        self._base = self._settings.rnis.rstrip("/")
        self._cells = {cell.lower(): station for cell, station in self._settings.cells.items()}
        self._own: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._number = 0
        self._complaints = Complaints()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="mec012")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await super().close()

    def answer(self, user: str) -> Orders:
        self._own[user] = time.monotonic()
        return super().answer(user)

    # --- subscribing ----------------------------------------------------------------------------------------
    async def _keep(self) -> None:
        retry_s = RETRY_S
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            while True:
                began_s = time.monotonic()
                try:
                    await self._listen(http)
                except _Lost as error:
                    self._complaints.tell("rnis", f"the radio network information service tells nothing: {error}")
                retry_s = RETRY_S if time.monotonic() - began_s > MOST_RETRY_S else min(MOST_RETRY_S, retry_s * 2)
                await asyncio.sleep(retry_s)

    async def _listen(self, http: httpx.AsyncClient) -> None:
        """Subscribe, and hear until it fails. Raises _Lost and what the libraries raise."""
        made: dict[str, dict[str, Any]] = {}
        try:
            shown = await asyncio.to_thread(self._authorization)  # each time: a token may be exchanged
        except BadInput as error:
            raise _Lost(str(error)) from None
        http.headers.update(shown)
        try:
            async with asyncio.TaskGroup() as group:
                for body in self._bodies():
                    kind = body["subscriptionType"]
                    answer = await http.post(f"{self._base}/subscriptions", json=body)
                    if answer.status_code != 201 and kind == MEAS_REP_UE:
                        self._complaints.tell(kind, f"the service has no {kind}: only handovers are heard of")
                        continue
                    value = _checked(answer, 201)
                    href = self._own_address(value["_links"]["self"]["href"], ("http", "https"))
                    made[href] = body
                    if not self._settings.callback:
                        uri = self._own_address(value["websockNotifConfig"]["websocketUri"], ("ws", "wss"))
                        group.create_task(self._hear(uri, shown))
                self._complaints.over("rnis")
                log.info("the radio network information service is heard", rnis=self._base, subscriptions=len(made))
                group.create_task(self._renew(http, made))
        except ExceptionGroup as several:
            first = several.exceptions[0]
            if isinstance(first, KeyError | TypeError | ValueError):
                raise _Lost(f"it answers what MEC 012 does not know: {first!r}") from None
            raise _Lost(str(first) or type(first).__name__) from None
        finally:
            for href in made:
                with contextlib.suppress(httpx.HTTPError, asyncio.CancelledError):
                    await http.delete(href)

    def _bodies(self) -> list[dict[str, Any]]:
        callback = self._settings.callback.rstrip("/")
        way: dict[str, Any] = (
            {"callbackReference": f"{callback}{PATH}/{self.secret}"}
            if callback
            else {"websockNotifConfig": {"requestWebsocketUri": True}}
        )
        wanted = [HoStatus.IN_EXECUTION.value, HoStatus.COMPLETED.value]
        return [
            {"subscriptionType": CELL_CHANGE, "filterCriteriaAssocHo": {"hoStatus": wanted}, **way, **_deadline()},
            {
                "subscriptionType": MEAS_REP_UE,
                "filterCriteriaAssocTri": {"trigger": [PERIODICAL]},
                **way,
                **_deadline(),
            },
        ]

    def _own_address(self, url: str, schemes: tuple[str, ...]) -> str:
        """What the service names lies at the service: it sends us nowhere else, and a token only to the very place that
        it is for. Raises _Lost."""
        parts, base = urlsplit(url), urlsplit(self._base)
        there = parts.scheme in schemes and parts.hostname == base.hostname
        if self._settings.token_file:
            secure = base.scheme == "https"
            there = there and (parts.scheme in ("https", "wss")) == secure and _port(parts) == _port(base)
        if not there:
            raise _Lost(f"it names {url[:200]!r}, which is not at {base.netloc}")
        return url

    def _authorization(self) -> dict[str, str]:
        """The header by which we show our token. Raises BadInput."""
        file = self._settings.token_file
        if not file:
            return {}
        try:
            shown = authorization(token_in(file))
        except BadInput as error:
            raise BadInput(f"[planner.handover_settings] token_file: {error}") from None
        if not shown:
            raise BadInput(f"[planner.handover_settings] token_file: {file} is empty: write the service's token there")
        return shown

    async def _renew(self, http: httpx.AsyncClient, made: dict[str, dict[str, Any]]) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            for href, body in made.items():
                _checked(await http.put(href, json=body | _deadline()), 200)

    async def _hear(self, uri: str, shown: dict[str, str]) -> None:
        try:
            async with connect(
                uri, additional_headers=shown, open_timeout=TIMEOUT_S, max_size=MOST_MESSAGE_BYTES, proxy=None
            ) as socket:
                async for message in socket:
                    self.take(message if isinstance(message, bytes) else message.encode())
        except (InvalidHandshake, InvalidURI) as error:
            raise _Lost(f"its websocket {uri} does not open: {error}") from None
        raise _Lost("its websocket ended")

    # --- hearing --------------------------------------------------------------------------------------------
    def take(self, body: bytes) -> None:
        """One notification. What is none, or of nobody here, is named once and passed over."""
        try:
            kind = msgspec.json.decode(body, type=_Kind).notification_type
            if kind == "CellChangeNotification":
                self._take_change(msgspec.json.decode(body, type=CellChangeNotification))
            elif kind == "MeasRepUeNotification":
                self._take_measured(msgspec.json.decode(body, type=MeasRepUeNotification))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._complaints.tell("notification", f"a notification of the radio network is not valid: {error}")
        except WhimbrelError as error:
            self._complaints.tell("user", f"a notification of the radio network is not taken: {error}")

    def _take_change(self, change: CellChangeNotification) -> None:
        source, targets = self._station(change.src_ecgi), [self._station(one) for one in change.trg_ecgi]
        at_s = _time_of(change.time_stamp)
        for user in self._users(change.associate_id):
            if change.ho_status is HoStatus.IN_EXECUTION:
                self._began[user] = at_s
            elif change.ho_status is HoStatus.COMPLETED and source and targets and targets[0]:
                began_s = self._began.pop(user, None)
                took_ms = (at_s - began_s) * 1e3 if began_s is not None else USUAL_INTERRUPTION_MS
                order = self._order_to(user, targets[0])
                self._tell(
                    HandoverRecord(
                        user=user,
                        source=source,
                        target=targets[0],
                        reason="mec012",
                        unix_s=at_s - took_ms / 1e3,
                        elapsed_s=0.0,
                        interruption_ms=took_ms,
                        ordered=bool(order),
                        order=order,
                    )
                )

    def _take_measured(self, measured: MeasRepUeNotification) -> None:
        serving = self._station(measured.ecgi)
        levels = {serving: dbm_of(measured.rsrp)}
        for cell in measured.eutran_neighbour_cell_meas_info:
            levels[self._station(cell.ecgi)] = dbm_of(cell.rsrp)
        levels.pop("", None)
        heard = sorted(levels.items(), key=lambda one: -one[1])
        for user in self._users(measured.associate_id) if serving else []:
            self._number += 1
            self._tell(
                UserReport(
                    user=user,
                    number=self._number,
                    unix_s=_time_of(measured.time_stamp),
                    elapsed_s=0.0,
                    x_m=math.nan,  # the service does not say where a user is
                    y_m=math.nan,
                    speed_m_per_s=math.nan,
                    serving=serving,
                    state=LinkState.CONNECTED,
                    hears=tuple(Hears(base_station=name, rssi_dbm=level, filtered_dbm=level) for name, level in heard),
                )
            )

    def _users(self, ids: tuple[AssociateId, ...]) -> list[str]:
        found = []
        for one in ids:
            user = self._settings.users.get(one.value, "")
            if not user:
                self._complaints.tell(
                    ("user", one.value), f"the radio network tells of {one.value[:60]!r}: nobody here"
                )
            elif time.monotonic() - self._own.get(user, -1e9) > OWN_WORD_S:
                found.append(user)
        return found

    def _station(self, cell: Ecgi) -> str:
        station = self._cells.get(cell.cell_id.lower(), "")
        if not station:
            self._complaints.tell(("cell", cell.cell_id), "the radio network tells of a cell that is not here")
        return station

    def _order_to(self, user: str, target: str) -> str:
        """The order that such a handover carries out; "" for none."""
        return next((order.id for order in self.orders_of(user) if order.target == target), "")


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    notification_type: str


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme in ("https", "wss") else 80)


def _deadline() -> dict[str, Any]:
    return {"expiryDeadline": msgspec.to_builtins(TimeStamp.at(time.time() + LASTS_S))}


def _checked(answer: httpx.Response, status: int) -> Any:
    """Raises _Lost."""
    if answer.status_code != status:
        raise _Lost(f"{answer.request.url} answered with status {answer.status_code}")
    return answer.json()


def _time_of(stamp: TimeStamp | None) -> float:
    return stamp.unix_s if stamp is not None else time.time()


HANDOVERS = HandoverPort(
    name="mec012", summary="handovers as an ETSI MEC 012 service tells of them; orders as `answers`", make=Mec012
)
