"""The calls that an agent answers. Each is a frozen struct whose `reply` names the type of its answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from whimbrel.model.migration import MigrationRecord, MigrationRequest
from whimbrel.model.node import Capabilities, ComputingPower, Endpoint, NodeStatus, Resources
from whimbrel.model.service import EngineKind, ExecResult, ImageInfo, ServiceProbe, ServiceSpec, ServiceStatus
from whimbrel.model.volume import VolumeInfo


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="call"):
    reply: ClassVar[Any] = None


class GetNode(Call, tag="node", frozen=True):
    reply: ClassVar[Any] = NodeStatus


class MeasurePower(Call, tag="node.power", frozen=True):
    """Run the benchmark of computing power again; half a second of one processor."""

    reply: ClassVar[Any] = ComputingPower


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
    keep_volumes: bool = False


class ReleaseService(Call, tag="service.release", frozen=True):
    """Forget a container of another engine, which runs on there without the overlay."""

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


class ProbeService(Call, tag="service.probe", frozen=True):
    name: str
    interval_s: float
    reply: ClassVar[Any] = ServiceProbe


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


class MoveFreeze(Call, tag="migrate.freeze", frozen=True):
    """The freeze is due in so long from now, whatever was asked before. Answers False when it has begun, or the
    migration is unknown."""

    id: str
    in_ms: float
    reply: ClassVar[Any] = bool


class ResolveMigration(Call, tag="migrate.resolve", frozen=True):
    """An operator says what the destination, which is gone, cannot: whether the service runs there. Answers False when
    the migration does not wait for the destination's word."""

    id: str
    runs_there: bool
    reply: ClassVar[Any] = bool


class GetMigration(Call, tag="migrate.get", frozen=True):
    """The record of a migration that went out from here: of the one under way (outcome ``running``), or one of the last
    that ended. None when this agent knows nothing of it."""

    id: str
    reply: ClassVar[Any] = MigrationRecord | None


# --- migration, destination side --------------------------------------------------------------------------
class OfferMigration(Call, tag="incoming.offer", frozen=True):
    """May this service come? Answers with what the source compares; raises Refused with the reason if not.

    `description`: what the engine of the container says about it, for the engine there (empty for runc). `shared`:
    the identity of the shared storage that the destination must mount, "" for none."""

    spec: ServiceSpec
    rss_bytes: int
    image_digest: str
    description: bytes = b""
    shared: str = ""
    reply: ClassVar[Any] = "OfferReply"


class OfferReply(msgspec.Struct, frozen=True, kw_only=True):
    """`has_image`: it is there, or can be unpacked there; else the source brings it. `shared_problem`: why memory
    cannot come over the shared storage that the source named; empty when it can."""

    capabilities: Capabilities
    resources: Resources
    has_image: bool
    shared_problem: str = ""


class TakeProbe(Call, tag="incoming.probe", frozen=True):
    """Bytes to be thrown away: how fast is the link? Answers with how many came."""

    payload: bytes
    reply: ClassVar[Any] = int


class PrepareIncoming(Call, tag="incoming.prepare", frozen=True):
    """Make everything ready (image, root file system, network, runtime record) and open the page channel."""

    id: str
    service: ServiceStatus
    strategy: str
    description: bytes = b""
    reply: ClassVar[Any] = "IncomingReady"


class IncomingReady(msgspec.Struct, frozen=True, kw_only=True):
    """`page_port`: TCP port of the page channel; `stage_port`: where rsync and layers for the page server go (0 when
    the strategy stages nothing); `files_port`: where files go; `token`: what the source must say first at each."""

    page_port: int
    stage_port: int = 0
    files_port: int
    token: str


class Fate(StrEnum):
    """What became of a service that was to come. ``runs`` may still become ``lost`` until all of its pages are in
    place; the other two are final, and certain: it runs no instruction there any more."""

    NEVER_RAN = "never-ran"
    RUNS = "runs"
    LOST = "lost"


class AbortIncoming(Call, tag="incoming.abort", frozen=True):
    """Undo PrepareIncoming, whatever of it happened. Safe to repeat; after the commit it changes nothing: ``runs``."""

    id: str
    reply: ClassVar[Any] = Fate


class AwaitIncoming(Call, tag="incoming.await", frozen=True):
    """Wait until all pages are in place (``runs``), or until it is certain that they never will be."""

    id: str
    reply: ClassVar[Any] = Fate


class FinishIncoming(Call, tag="incoming.finish", frozen=True):
    """The source has heard that the service is whole; what was kept to tell it may go. Answers with the service."""

    id: str
    reply: ClassVar[Any] = ServiceStatus


# --- volumes ----------------------------------------------------------------------------------------------
class ListVolumes(Call, tag="volume.list", frozen=True):
    reply: ClassVar[Any] = tuple[VolumeInfo, ...]


class RemoveVolume(Call, tag="volume.remove", frozen=True):
    """Of a service that is gone. Raises Conflict while it is there."""

    service: str
    name: str


# --- images -----------------------------------------------------------------------------------------------
class ListImages(Call, tag="image.list", frozen=True):
    reply: ClassVar[Any] = tuple[ImageInfo, ...]


class PushImage(Call, tag="image.push", frozen=True):
    """Bring an image from the node that is asked to `destination`. Answers with the bytes sent; 0: it was there."""

    digest: str
    destination: Endpoint
    reply: ClassVar[Any] = int


class TakeImage(Call, tag="image.take", frozen=True):
    """May this image come? Answered when it is there, or when a place for it is ready; while another node is bringing
    it, that is waited for. Raises Refused when there is no room."""

    digest: str
    tree: str
    reference: str
    size_bytes: int
    reply: ClassVar[Any] = "ImageSlot"


class ImageSlot(msgspec.Struct, frozen=True, kw_only=True):
    """Where to bring an image, and what to say first there. `port` 0: it is there already."""

    port: int = 0
    token: str = ""


class TakeGuestImage(Call, tag="guest-image.take", frozen=True):
    """Let another engine take in the image of the container that its own engine describes so. Answers with the
    transfer's name; "" when the image is there."""

    engine: EngineKind
    description: bytes
    reply: ClassVar[Any] = str


class GuestImagePiece(Call, tag="guest-image.piece", frozen=True):
    """The next bytes of the archive; the `last` (empty) is answered when the engine has the image."""

    transfer: str
    data: bytes
    last: bool = False
    reply: ClassVar[Any] = bool


# --- holding packets at a gateway -------------------------------------------------------------------------
class PrepareHold(Call, tag="hold.prepare", frozen=True):
    """Make room for the packets of one address; changes no traffic."""

    address: str


class Hold(Call, tag="hold.on", frozen=True):
    """From the answer on, packets for `address` wait here until its `stand_in` is announced or it is released."""

    address: str
    stand_in: str


class RenewHold(Call, tag="hold.renew", frozen=True):
    """The freeze lasts: what is held for `address` waits on. Nothing happens where nothing is held any more."""

    address: str


class Release(Call, tag="hold.off", frozen=True):
    """Let packets for `address` go to `mac` now. A hold under another `stand_in` is another migration's, and stays."""

    address: str
    mac: str
    stand_in: str = ""


OfferMigration.reply = OfferReply
PrepareIncoming.reply = IncomingReady
TakeImage.reply = ImageSlot

AnyCall = (
    GetNode
    | MeasurePower
    | SetPeers
    | RunService
    | AdoptService
    | ListServices
    | InspectService
    | RemoveService
    | ReleaseService
    | ServiceLogs
    | AddLogs
    | ExecInService
    | ProbeService
    | Migrate
    | CancelMigration
    | MoveFreeze
    | ResolveMigration
    | GetMigration
    | OfferMigration
    | TakeProbe
    | PrepareIncoming
    | AbortIncoming
    | AwaitIncoming
    | FinishIncoming
    | ListVolumes
    | RemoveVolume
    | ListImages
    | PushImage
    | TakeImage
    | TakeGuestImage
    | GuestImagePiece
    | PrepareHold
    | Hold
    | RenewHold
    | Release
)
