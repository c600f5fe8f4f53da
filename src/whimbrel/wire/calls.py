"""The calls that an agent answers. Each is a frozen struct whose `reply` names the type of its answer."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from whimbrel.model.migration import MigrationRecord, MigrationRequest
from whimbrel.model.node import Capabilities, Endpoint, NodeStatus, Resources
from whimbrel.model.service import ExecResult, ServiceSpec, ServiceStatus


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="call"):
    reply: ClassVar[Any] = None


class GetNode(Call, tag="node", frozen=True):
    reply: ClassVar[Any] = NodeStatus


class SetPeers(Call, tag="peers", frozen=True):
    """All nodes of the region: the agent joins them by VXLAN and forgets the ones that are gone."""

    peers: tuple[Endpoint, ...]


# --- services ---------------------------------------------------------------------------------------------
class RunService(Call, tag="service.run", frozen=True):
    spec: ServiceSpec
    reply: ClassVar[Any] = ServiceStatus


class AdoptService(Call, tag="service.adopt", frozen=True):
    """Make a running container of another engine (`spec.engine`; its name or id there) a service."""

    spec: ServiceSpec
    container: str
    reply: ClassVar[Any] = ServiceStatus


class ListServices(Call, tag="service.list", frozen=True):
    reply: ClassVar[Any] = tuple[ServiceStatus, ...]


class InspectService(Call, tag="service.inspect", frozen=True):
    name: str
    reply: ClassVar[Any] = ServiceStatus


class RemoveService(Call, tag="service.remove", frozen=True):
    name: str


class ServiceLogs(Call, tag="service.logs", frozen=True):
    """The last `tail_bytes` of the service's output, from all nodes it ran on."""

    name: str
    tail_bytes: int = 65536
    reply: ClassVar[Any] = str


class AddLogs(Call, tag="service.logs.add", frozen=True):
    """Segments of the output from the node that a service comes from (see `whimbrel.runtime.logger`)."""

    name: str
    segments: bytes


class ExecInService(Call, tag="service.exec", frozen=True):
    name: str
    argv: tuple[str, ...]
    reply: ClassVar[Any] = ExecResult


# --- migration, source side -------------------------------------------------------------------------------
class Migrate(Call, tag="migrate", frozen=True):
    """Answered when the migration is over; `Progress` events meanwhile."""

    request: MigrationRequest
    destination: Endpoint
    gateways: tuple[Endpoint, ...]
    reply: ClassVar[Any] = MigrationRecord


class CancelMigration(Call, tag="migrate.cancel", frozen=True):
    """Answers False when the migration is past its commit or unknown."""

    id: str
    reply: ClassVar[Any] = bool


# --- migration, destination side --------------------------------------------------------------------------
class OfferMigration(Call, tag="incoming.offer", frozen=True):
    """May this service come? Answers with what the source compares; raises Refused with the reason if not.

    `description`: what the engine of the container says about it, for the engine there (empty for runc)."""

    spec: ServiceSpec
    rss_bytes: int
    image_digest: str
    description: bytes = b""
    reply: ClassVar[Any] = "OfferReply"


class OfferReply(msgspec.Struct, frozen=True, kw_only=True):
    capabilities: Capabilities
    resources: Resources
    has_image: bool


class PrepareIncoming(Call, tag="incoming.prepare", frozen=True):
    """Make everything ready (image, root file system, network, runtime record) and open the page channel."""

    id: str
    service: ServiceStatus
    strategy: str
    source_host: str
    description: bytes = b""
    reply: ClassVar[Any] = "IncomingReady"


class IncomingReady(msgspec.Struct, frozen=True, kw_only=True):
    """`page_port`: TCP port of the page channel; `token`: what the source must say first there."""

    page_port: int
    token: str


class AbortIncoming(Call, tag="incoming.abort", frozen=True):
    """Undo PrepareIncoming, whatever of it happened. Safe to repeat; after the commit it answers False."""

    id: str
    reply: ClassVar[Any] = bool


class FinishIncoming(Call, tag="incoming.finish", frozen=True):
    """Wait until all pages are local, then adopt the service."""

    id: str
    reply: ClassVar[Any] = ServiceStatus


# --- holding packets at a gateway -------------------------------------------------------------------------
class PrepareHold(Call, tag="hold.prepare", frozen=True):
    """Make room for the packets of one address: queue size and retry times; changes no traffic."""

    address: str


class Hold(Call, tag="hold.on", frozen=True):
    """From the answer on, packets for `address` wait here until the address is announced or released."""

    address: str


class Release(Call, tag="hold.off", frozen=True):
    """Let packets for `address` go to `mac` now."""

    address: str
    mac: str


OfferMigration.reply = OfferReply
PrepareIncoming.reply = IncomingReady

AnyCall = (
    GetNode
    | SetPeers
    | RunService
    | AdoptService
    | ListServices
    | InspectService
    | RemoveService
    | ServiceLogs
    | AddLogs
    | ExecInService
    | Migrate
    | CancelMigration
    | OfferMigration
    | PrepareIncoming
    | AbortIncoming
    | FinishIncoming
    | PrepareHold
    | Hold
    | Release
)
