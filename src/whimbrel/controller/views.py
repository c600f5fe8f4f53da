"""What the API answers beside the values of `model`."""

from __future__ import annotations

import msgspec

from whimbrel.model.decision import PlannerSetting
from whimbrel.model.migration import MigrationRecord, Progress
from whimbrel.model.node import Capabilities, PathStatus, Resources, Role, ServiceUse, SharedMount, Tier
from whimbrel.model.placement import PlanFigures
from whimbrel.model.service import ImageInfo, ServiceStatus
from whimbrel.model.volume import VolumeInfo


class Health(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    nodes: int


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the controller sees it now. When its agent does not answer, `up` is false and `error` says
    why."""

    name: str
    role: Role
    host: str
    port: int
    overlay_host: str
    up: bool
    error: str = ""
    services: tuple[str, ...] = ()
    capabilities: Capabilities | None = None
    resources: Resources | None = None
    shared: SharedMount | None = None
    tier: Tier = Tier.EDGE
    nat: bool = False
    service_use: tuple[ServiceUse, ...] = ()
    paths: tuple[PathStatus, ...] = ()


class ServiceList(msgspec.Struct, frozen=True, kw_only=True):
    """All services of the region; `unreachable` names the edge nodes whose services are therefore missing."""

    services: tuple[ServiceStatus, ...]
    unreachable: tuple[str, ...] = ()


class VolumeList(msgspec.Struct, frozen=True, kw_only=True):
    volumes: tuple[VolumeInfo, ...]
    unreachable: tuple[str, ...] = ()


class ImageList(msgspec.Struct, frozen=True, kw_only=True):
    images: tuple[ImageInfo, ...]
    unreachable: tuple[str, ...] = ()


class ImagePush(msgspec.Struct, frozen=True, kw_only=True):
    """What bringing an image to a node came to; `sent_bytes` 0: it was there."""

    digest: str
    source: str
    destination: str
    sent_bytes: int


class Logs(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    text: str


class MigrationEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a migration's event stream: progress, or at the end the record; neither means: still
    there."""

    progress: Progress | None = None
    record: MigrationRecord | None = None


class PlannerView(msgspec.Struct, frozen=True, kw_only=True):
    """`order`: what the setting comes to; `planners`: which there are, with one line each; `last`: the last plan."""

    setting: PlannerSetting
    order: str
    planners: dict[str, str]
    last: PlanFigures | None = None
