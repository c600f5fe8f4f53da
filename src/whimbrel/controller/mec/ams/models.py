"""MEC 021's values. On the wire they have the specification's names.

v2.1.1 wrote enumerations as integers, v2.2.1 writes words: integers are read as the words that they became, and words
are what is answered (`modern`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from whimbrel.controller.mec.common import (
    LinkType,
    Seconds,
    SelfLink,
    SubscriptionLink,
    Text,
    TimeStamp,
    WebsockNotifConfig,
    Wire,
)

MOST_IDS = 1000
Ids = Annotated[tuple["AssociateId", ...], msgspec.Meta(max_length=MOST_IDS)]


class AssociateIdType(StrEnum):
    UE_IPV4 = "UE_IPv4_ADDRESS"
    UE_IPV6 = "UE_IPV6_ADDRESS"
    NATED_IP = "NATED_IP_ADDRESS"
    GTP_TEID = "GTP_TEID"


class MobilityStatus(StrEnum):
    TRIGGERED = "INTERHOST_MOVEOUT_TRIGGERED"
    COMPLETED = "INTERHOST_MOVEOUT_COMPLETED"
    FAILED = "INTERHOST_MOVEOUT_FAILED"


class AppMobilityServiceLevel(StrEnum):
    NOT_ALLOWED = "APP_MOBILITY_NOT_ALLOWED"
    WITH_CONFIRMATION = "APP_MOBILITY_WITH_CONFIRMATION"
    WITHOUT_CONFIRMATION = "APP_MOBILITY_WITHOUT_CONFIRMATION"


class ContextTransferState(StrEnum):
    NOT_TRANSFERRED = "NOT_TRANSFERRED"
    COMPLETED = "USER_CONTEXT_TRANSFER_COMPLETED"


_WORDS: dict[str, dict[int, str]] = {
    "type": dict(enumerate(AssociateIdType, start=1)),
    "mobilityStatus": dict(enumerate(MobilityStatus, start=1)),
    "appMobilityServiceLevel": dict(enumerate(AppMobilityServiceLevel, start=1)),
    "contextTransferState": dict(enumerate(ContextTransferState)),
}


def modern(value: Any, name: str = "") -> Any:
    """A JSON value with v2.1.1's integers as v2.2.1's words."""
    if isinstance(value, dict):
        return {key: modern(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [modern(part, name) for part in value]
    if isinstance(value, int) and not isinstance(value, bool) and name in _WORDS:
        return _WORDS[name].get(value, value)
    return value


class AssociateId(Wire, frozen=True, kw_only=True):
    type: AssociateIdType | msgspec.UnsetType = msgspec.UNSET
    value: Text = ""


class DeviceInformation(Wire, frozen=True, kw_only=True):
    associate_id: AssociateId
    app_mobility_service_level: AppMobilityServiceLevel | msgspec.UnsetType = msgspec.UNSET
    context_transfer_state: ContextTransferState | msgspec.UnsetType = msgspec.UNSET


class ServiceConsumerId(Wire, frozen=True, kw_only=True):
    app_instance_id: Text = ""
    mep_id: Text = ""


class RegistrationInfo(Wire, frozen=True, kw_only=True):
    """`expiry_time`: seconds from when it was registered; 0, and nothing: for ever."""

    service_consumer_id: ServiceConsumerId
    app_mobility_service_id: Text = ""
    device_information: Annotated[tuple[DeviceInformation, ...], msgspec.Meta(max_length=MOST_IDS)] = ()
    expiry_time: Seconds | msgspec.UnsetType = msgspec.UNSET


class MobilityCriteria(Wire, frozen=True, kw_only=True):
    app_instance_id: Text = ""
    associate_id: Ids = ()
    mobility_status: tuple[MobilityStatus, ...] = ()


class AdjacentCriteria(Wire, frozen=True, kw_only=True):
    app_instance_id: Text = ""


class MobilityProcedureSubscription(Wire, frozen=True, kw_only=True):
    filter_criteria: MobilityCriteria
    subscription_type: str
    links: SelfLink | None = msgspec.field(name="_links", default=None)
    callback_reference: Text = ""
    request_test_notification: bool | msgspec.UnsetType = msgspec.UNSET
    websock_notif_config: WebsockNotifConfig | None = None
    expiry_deadline: TimeStamp | None = None


class AdjacentAppInfoSubscription(Wire, frozen=True, kw_only=True):
    filter_criteria: AdjacentCriteria
    subscription_type: str
    links: SelfLink | None = msgspec.field(name="_links", default=None)
    callback_reference: Text = ""
    request_test_notification: bool | msgspec.UnsetType = msgspec.UNSET
    websock_notif_config: WebsockNotifConfig | None = None
    expiry_deadline: TimeStamp | None = None


MOBILITY, ADJACENT = "MobilityProcedureSubscription", "AdjacentAppInfoSubscription"
KINDS: dict[str, type[MobilityProcedureSubscription | AdjacentAppInfoSubscription]] = {
    MOBILITY: MobilityProcedureSubscription,
    ADJACENT: AdjacentAppInfoSubscription,
}
ASKED = {"mobility_proc": MOBILITY, "adj_app_info": ADJACENT}
"""The query parameter `subscriptionType`'s own words for them."""


class IpAddress(Wire, frozen=True, kw_only=True):
    host: str
    port: int


class CommunicationInterface(Wire, frozen=True, kw_only=True):
    ip_addresses: tuple[IpAddress, ...] = ()


class TargetAppInfo(Wire, frozen=True, kw_only=True):
    app_instance_id: str
    comm_interface: CommunicationInterface | None = None


class MobilityProcedureNotification(Wire, frozen=True, kw_only=True):
    notification_type: str
    associate_id: tuple[AssociateId, ...]
    mobility_status: MobilityStatus
    links: SubscriptionLink = msgspec.field(name="_links")
    time_stamp: TimeStamp
    target_app_info: TargetAppInfo | None = None


class AdjacentAppInfo(Wire, frozen=True, kw_only=True):
    app_instance_id: str
    comm_interface: tuple[CommunicationInterface, ...]


class AdjacentAppInfoNotification(Wire, frozen=True, kw_only=True):
    notification_type: str
    links: SubscriptionLink = msgspec.field(name="_links")
    time_stamp: TimeStamp
    adjacent_app_info: AdjacentAppInfo
    associate_id: tuple[AssociateId, ...] = ()


class MecHostInformation(Wire, frozen=True, kw_only=True):
    host_name: str
    host_id: dict[str, dict[str, str]]


class AdjacentAppInstanceInfo(Wire, frozen=True, kw_only=True):
    app_d_id: str = msgspec.field(name="appDId")
    app_instance_comm_link: tuple[CommunicationInterface, ...]
    app_instance_id: str
    mec_host_information: MecHostInformation
    registered_instance_id: str


def link_to(href: str) -> SubscriptionLink:
    return SubscriptionLink(subscription=LinkType(href=href))
