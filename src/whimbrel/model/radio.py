"""What a user's equipment tells, and what the network tells it. The same structs go to a file, one JSON object a line
(`event` says which), and over HTTP. RSSI in dBm; `unix_s` is the wall clock, `elapsed_s` the time on the user's
path."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class LinkState(StrEnum):
    CONNECTED = "connected"
    HANDOVER = "handover"
    NO_COVERAGE = "no-coverage"


class Hears(msgspec.Struct, frozen=True, kw_only=True):
    """One base station: `rssi_dbm` as measured now, `filtered_dbm` what handovers are decided by."""

    base_station: str
    rssi_dbm: float
    filtered_dbm: float


class DelayFigures(msgspec.Struct, frozen=True, kw_only=True):
    """End-to-end delay of the application's requests that were settled since the last report. `lost`: given up.
    Delays are of those answered, null when none was; `processing_ms`: how long the service says that it worked on one
    (mean), null when it does not say."""

    requests: int
    lost: int
    mean_ms: float | None = None
    p50_ms: float | None = None
    max_ms: float | None = None
    processing_ms: float | None = None


class HandoverForecast(msgspec.Struct, frozen=True, kw_only=True):
    """When, from now, the user will be handed over, and where to. `chance` (0..1) that it happens within `horizon_s`;
    of those cases, one in ten is earlier than `early_s`, half than `median_s`, nine in ten than `late_s`. `source`:
    ``path`` where the path is known, else ``slope``. `levels_dbm`: what is expected to be heard of each base station at
    `median_s`, the mean of all cases; one that is not named is taken to stay as it is."""

    target: str
    median_s: float
    early_s: float
    late_s: float
    chance: float
    horizon_s: float
    source: str
    levels_dbm: dict[str, float] = {}


class UserReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="report"):
    """The local monitor's regular message (paper `coordinated`, III). `hears`: strongest first. `serving` is empty
    without coverage. `wants`: where the user's own rule would hand it over to now, if the network decides. `problems`:
    measurements that were not believed since the last report, each named once."""

    user: str
    number: int
    unix_s: float
    elapsed_s: float
    x_m: float
    y_m: float
    speed_m_per_s: float
    serving: str
    state: LinkState
    hears: tuple[Hears, ...]
    wants: str = ""
    delay: DelayFigures | None = None
    forecast: HandoverForecast | None = None
    problems: tuple[str, ...] = ()


class HandoverOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="order"):
    """The network's word to a user: be at `target` from `at_unix_s` on (0: at once). An order with the `id` of an
    earlier one that was not carried out yet replaces it."""

    user: str
    target: str
    at_unix_s: float = 0.0
    id: str = ""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a report."""

    orders: tuple[HandoverOrder, ...] = ()


class HandoverRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="handover"):
    """One handover, carried out or not (then `error` says why, and the user is still at `source`). `interruption_ms`:
    from the last moment at which something could pass by the old base station to the first by the new one.
    `ordered`: the network decided, by the order `order`."""

    user: str
    source: str
    target: str
    reason: str
    unix_s: float
    elapsed_s: float
    interruption_ms: float
    ordered: bool = False
    order: str = ""
    error: str = ""


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="requests"):
    """Requests of the application in the order sent; `delays_ms` null: never answered. `processing_ms`: how long the
    service says that it worked on each, 0 where it does not say; empty when it never does. `sent_unix_s` is the wall
    clock derived from the monotonic one, once, so a clock that is set meanwhile moves none of them."""

    user: str
    protocol: str
    sent_unix_s: tuple[float, ...]
    delays_ms: tuple[float | None, ...]
    processing_ms: tuple[float, ...] = ()


class UserNote(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="note"):
    """Anything else worth telling: begin and end, a problem named once."""

    user: str
    unix_s: float
    elapsed_s: float
    kind: str
    text: str


UserEvent = UserReport | HandoverRecord | RequestTimes | UserNote
