"""MEC 013's values. On the wire they have the specification's names."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from whimbrel.controller.mec.common import Seconds, Text, TimeStamp, Wire

POINT = 2
"""ELLIPSOID_POINT of 3GPP TS 23.032."""
MOST_USERS = 1000
MOST_PAIRS = 2500
"""Of users whose distance one subscription has measured, twice a second."""

Degrees = Annotated[float, msgspec.Meta(ge=-360, le=360)]
Metres = Annotated[float, msgspec.Meta(ge=0, le=4.1e7)]
Addresses = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=MOST_USERS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class UserEventType(StrEnum):
    ENTERING = "Entering"
    LEAVING = "Leaving"
    TRANSFERRING = "Transferring"


class OperationStatus(StrEnum):
    SERVICEABLE = "Serviceable"
    UNSERVICEABLE = "Unserviceable"
    UNKNOWN = "Unknown"


class EnteringLeaving(StrEnum):
    ENTERING = "Entering"
    LEAVING = "Leaving"


class DistanceCriteria(StrEnum):
    ALL_WITHIN = "AllWithinDistance"
    ANY_WITHIN = "AnyWithinDistance"
    ALL_BEYOND = "AllBeyondDistance"
    ANY_BEYOND = "AnyBeyondDistance"


class NotificationFormat(StrEnum):
    XML = "XML"
    JSON = "JSON"


class LocationInfo(Wire, frozen=True, kw_only=True):
    latitude: tuple[float, ...]
    longitude: tuple[float, ...]
    shape: int
    timestamp: TimeStamp | None = None


class Link(Wire, frozen=True, kw_only=True):
    rel: Text
    href: Text


class CallbackReference(Wire, frozen=True, kw_only=True):
    notify_url: Text = msgspec.field(name="notifyURL")
    callback_data: Text | msgspec.UnsetType = msgspec.UNSET
    notification_format: NotificationFormat | msgspec.UnsetType = msgspec.UNSET


class _Subscription(Wire, frozen=True, kw_only=True):
    callback_reference: CallbackReference
    client_correlator: Text | msgspec.UnsetType = msgspec.UNSET
    resource_url: Text = msgspec.field(name="resourceURL", default="")


class UserTrackingSubscription(_Subscription, frozen=True, kw_only=True):
    address: Text
    user_event_criteria: tuple[UserEventType, ...] = ()


class ZonalTrafficSubscription(_Subscription, frozen=True, kw_only=True):
    zone_id: Text
    interest_realm: tuple[Text, ...] = ()
    user_event_criteria: tuple[UserEventType, ...] = ()
    duration: Seconds | msgspec.UnsetType = msgspec.UNSET


class ZoneStatusSubscription(_Subscription, frozen=True, kw_only=True):
    zone_id: Text
    number_of_users_zone_threshold: Count | msgspec.UnsetType = msgspec.UNSET
    number_of_users_ap_threshold: Count | msgspec.UnsetType = msgspec.field(
        name="numberOfUsersAPThreshold", default=msgspec.UNSET
    )
    operation_status: tuple[OperationStatus, ...] = ()


class _Watch(_Subscription, frozen=True, kw_only=True):
    """`frequency`: the least time between two notifications, in s."""

    frequency: Seconds
    duration: Seconds | msgspec.UnsetType = msgspec.UNSET
    requester: Text | msgspec.UnsetType = msgspec.UNSET
    link: tuple[Link, ...] = ()


class CircleNotificationSubscription(_Watch, frozen=True, kw_only=True):
    address: Addresses
    latitude: Degrees
    longitude: Degrees
    radius: Metres
    tracking_accuracy: Metres
    entering_leaving_criteria: EnteringLeaving
    check_immediate: bool
    count: Count | msgspec.UnsetType = msgspec.UNSET


class DistanceNotificationSubscription(_Watch, frozen=True, kw_only=True):
    monitored_address: Addresses
    distance: Metres
    tracking_accuracy: Metres
    criteria: DistanceCriteria
    check_immediate: bool
    reference_address: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MOST_USERS)] = ()
    count: Count | msgspec.UnsetType = msgspec.UNSET


class PeriodicNotificationSubscription(_Watch, frozen=True, kw_only=True):
    address: Addresses
    requested_accuracy: Count


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """`path`: below ``/subscriptions/``; `name`: of the member that holds it in a body."""

    path: str
    name: str
    type: type[Any]


KINDS = tuple(
    Kind(path=path, name=name, type=kind)
    for path, name, kind in (
        ("area/circle", "circleNotificationSubscription", CircleNotificationSubscription),
        ("distance", "distanceNotificationSubscription", DistanceNotificationSubscription),
        ("periodic", "periodicNotificationSubscription", PeriodicNotificationSubscription),
        ("userTracking", "userTrackingSubscription", UserTrackingSubscription),
        ("zonalTraffic", "zonalTrafficSubscription", ZonalTrafficSubscription),
        ("zoneStatus", "zoneStatusSubscription", ZoneStatusSubscription),
    )
)
CIRCLE, DISTANCE, PERIODIC, TRACKING, TRAFFIC, STATUS = (kind.path for kind in KINDS)


class AccessPointInfo(Wire, frozen=True, kw_only=True):
    access_point_id: str
    connection_type: str
    operation_status: OperationStatus
    number_of_users: int
    resource_url: str = msgspec.field(name="resourceURL")
    location_info: LocationInfo | None = None


class UserInfo(Wire, frozen=True, kw_only=True):
    address: str
    access_point_id: str
    zone_id: str
    resource_url: str = msgspec.field(name="resourceURL")
    timestamp: TimeStamp
    location_info: LocationInfo | None = None


class ZoneInfo(Wire, frozen=True, kw_only=True):
    zone_id: str
    number_of_access_points: int
    number_of_unserviceable_access_points: int
    number_of_users: int
    resource_url: str = msgspec.field(name="resourceURL")


class TerminalDistance(Wire, frozen=True, kw_only=True):
    distance: int
    timestamp: TimeStamp


class TerminalLocation(Wire, frozen=True, kw_only=True):
    address: str
    location_retrieval_status: str
    current_location: LocationInfo | None = None


class ZonalPresenceNotification(Wire, frozen=True, kw_only=True):
    zone_id: str
    address: str
    user_event_type: UserEventType
    current_access_point_id: str
    timestamp: TimeStamp
    previous_access_point_id: str = ""
    callback_data: str | msgspec.UnsetType = msgspec.UNSET
    link: tuple[Link, ...] = ()


class ZoneStatusNotification(Wire, frozen=True, kw_only=True):
    zone_id: str
    timestamp: TimeStamp
    access_point_id: str = ""
    number_of_users_in_ap: int | msgspec.UnsetType = msgspec.field(name="numberOfUsersInAP", default=msgspec.UNSET)
    number_of_users_in_zone: int | msgspec.UnsetType = msgspec.UNSET
    operation_status: OperationStatus | msgspec.UnsetType = msgspec.UNSET
    callback_data: str | msgspec.UnsetType = msgspec.UNSET
    link: tuple[Link, ...] = ()


class SubscriptionNotification(Wire, frozen=True, kw_only=True):
    terminal_location: tuple[TerminalLocation, ...]
    callback_data: str | msgspec.UnsetType = msgspec.UNSET
    distance_criteria: DistanceCriteria | msgspec.UnsetType = msgspec.UNSET
    entering_leaving_criteria: EnteringLeaving | msgspec.UnsetType = msgspec.UNSET
    is_final_notification: bool | msgspec.UnsetType = msgspec.UNSET
    link: tuple[Link, ...] = ()
