"""MEC 012's values, as far as the region's radio can fill them. On the wire they have the specification's names.

Signal levels are on the scales of 3GPP TS 36.133 (9.1.4 and 9.1.7): steps of 1 dB from -140 dBm, of half a dB from
-19.5 dB.
"""

from __future__ import annotations

from enum import IntEnum
from math import floor
from typing import Annotated

import msgspec

from whimbrel.controller.mec.common import (
    SelfLink,
    SubscriptionLink,
    Text,
    TimeStamp,
    WebsockNotifConfig,
    Wire,
)

MOST_IDS = 1000
MOST_RSRP, MOST_RSRQ = 97, 34


class AssociateIdType(IntEnum):
    RESERVED = 0
    UE_IPV4 = 1
    UE_IPV6 = 2
    NATED_IP = 3
    GTP_TEID = 4


class HoStatus(IntEnum):
    IN_PREPARATION = 1
    IN_EXECUTION = 2
    COMPLETED = 3
    REJECTED = 4
    CANCELLED = 5


PERIODICAL = 1
"""Of the triggers of a measurement report: regular reports of the strongest cells, as users make them here."""


class AssociateId(Wire, frozen=True, kw_only=True):
    type: AssociateIdType | msgspec.UnsetType = msgspec.UNSET
    value: Text = ""


class Plmn(Wire, frozen=True, kw_only=True):
    mcc: Text
    mnc: Text


class Ecgi(Wire, frozen=True, kw_only=True):
    cell_id: Text
    plmn: Plmn


Ids = Annotated[tuple[AssociateId, ...], msgspec.Meta(max_length=MOST_IDS)]
Cells = Annotated[tuple[Ecgi, ...], msgspec.Meta(max_length=MOST_IDS)]


class CellChangeCriteria(Wire, frozen=True, kw_only=True):
    app_instance_id: Text = ""
    associate_id: Ids = ()
    ecgi: Cells = ()
    ho_status: tuple[HoStatus, ...] = ()


class MeasRepCriteria(Wire, frozen=True, kw_only=True):
    app_instance_id: Text = ""
    associate_id: Ids = ()
    ecgi: Cells = ()
    trigger: tuple[Annotated[int, msgspec.Meta(ge=0, le=255)], ...] = ()


class CellChangeSubscription(Wire, frozen=True, kw_only=True):
    filter_criteria_assoc_ho: CellChangeCriteria
    subscription_type: str
    links: SelfLink | None = msgspec.field(name="_links", default=None)
    callback_reference: Text = ""
    request_test_notification: bool | msgspec.UnsetType = msgspec.UNSET
    websock_notif_config: WebsockNotifConfig | None = None
    expiry_deadline: TimeStamp | None = None


class MeasRepUeSubscription(Wire, frozen=True, kw_only=True):
    filter_criteria_assoc_tri: MeasRepCriteria
    subscription_type: str
    links: SelfLink | None = msgspec.field(name="_links", default=None)
    callback_reference: Text = ""
    request_test_notification: bool | msgspec.UnsetType = msgspec.UNSET
    websock_notif_config: WebsockNotifConfig | None = None
    expiry_deadline: TimeStamp | None = None


CELL_CHANGE, MEAS_REP_UE = "CellChangeSubscription", "MeasRepUeSubscription"
KINDS: dict[str, type[CellChangeSubscription | MeasRepUeSubscription]] = {
    CELL_CHANGE: CellChangeSubscription,
    MEAS_REP_UE: MeasRepUeSubscription,
}
NOT_SERVED = {
    "RabEstSubscription": "rab_est",
    "RabModSubscription": "rab_mod",
    "RabRelSubscription": "rab_rel",
    "NrMeasRepUeSubscription": "nr_meas_rep_ue",
    "MeasTaSubscription": "meas_timing_advance",
    "CaReconfSubscription": "ca_reconf",
    "S1BearerSubscription": "s1_bearer",
}
"""Subscriptions to what the region's radio does not know: bearers, timing advance, carrier aggregation, beams."""
ASKED = {"cell_change": CELL_CHANGE, "meas_rep_ue": MEAS_REP_UE} | {short: name for name, short in NOT_SERVED.items()}
"""The query parameter `subscription_type`'s own words for them."""


class CellChangeNotification(Wire, frozen=True, kw_only=True):
    notification_type: str
    ho_status: HoStatus
    src_ecgi: Ecgi
    trg_ecgi: tuple[Ecgi, ...]
    links: SubscriptionLink = msgspec.field(name="_links")
    time_stamp: TimeStamp | None = None
    associate_id: tuple[AssociateId, ...] = ()


class NeighbourCell(Wire, frozen=True, kw_only=True):
    ecgi: Ecgi
    rsrp: int
    rsrq: int


class MeasRepUeNotification(Wire, frozen=True, kw_only=True):
    notification_type: str
    trigger: int
    ecgi: Ecgi
    rsrp: int
    rsrq: int
    links: SubscriptionLink = msgspec.field(name="_links")
    time_stamp: TimeStamp | None = None
    associate_id: tuple[AssociateId, ...] = ()
    eutran_neighbour_cell_meas_info: tuple[NeighbourCell, ...] = ()


class PlmnInfo(Wire, frozen=True, kw_only=True):
    app_instance_id: str
    plmn: tuple[Plmn, ...]
    time_stamp: TimeStamp


class CellInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Users that are served, by a cell that guarantees no rate to any."""

    ecgi: Ecgi
    number_of_active_ue_dl_nongbr_cell: int
    number_of_active_ue_ul_nongbr_cell: int


class CellUeInfo(Wire, frozen=True, kw_only=True):
    associate_id: AssociateId
    ecgi: Ecgi


class L2Meas(msgspec.Struct, frozen=True, kw_only=True):
    cell_info: tuple[CellInfo, ...] = msgspec.field(name="cellInfo")
    cell_ue_info: tuple[CellUeInfo, ...] = msgspec.field(name="cellUEInfo")
    time_stamp: TimeStamp = msgspec.field(name="timeStamp")


def rsrp_of(level_dbm: float) -> int:
    return max(0, min(MOST_RSRP, floor(level_dbm + 141)))


def dbm_of(rsrp: int) -> float:
    """The middle of a step."""
    return max(0, min(MOST_RSRP, rsrp)) - 140.5


def rsrq_of(ratio_db: float) -> int:
    return max(0, min(MOST_RSRQ, floor((ratio_db + 20) * 2)))
