"""A service: what was asked for, and what runs."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.volume import parse_volumes

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


class EngineKind(StrEnum):
    """Who keeps a service's container; `RUNC` are the ones that Whimbrel starts itself."""

    RUNC = "runc"
    DOCKER = "docker"
    LXC = "lxc"
    PODMAN = "podman"


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for; travels with the service from node to node.

    `image` is ``oci:PATH[:TAG]``, ``oci-archive:PATH[:TAG]`` or ``rootfs:DIR``, and with another `engine` what that
    one calls it. `address` is the service's IPv4 address on the overlay, with prefix length (``10.77.1.1/16``); `ports`
    are ``N/tcp`` or ``N/udp``. `memory_limit_bytes` 0 means no limit. `volumes` are ``NAME:/path`` or
    ``NAME:/path:SIZE`` (see `model.volume`). `shared`: its root file system is to live on shared storage.
    """

    name: str
    image: str
    address: str
    ports: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    memory_limit_bytes: int = 0
    workload: str = ""
    engine: EngineKind = EngineKind.RUNC
    volumes: tuple[str, ...] = ()
    shared: bool = False

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise BadInput(f"service name {self.name!r} is not valid: use 1 to 40 of a-z, 0-9 and '-', not at an end")
        for port in self.ports:
            if not re.fullmatch(r"[0-9]{1,5}/(tcp|udp)", port) or not 0 < int(port.split("/")[0]) < 65536:
                raise BadInput(f"port {port!r} is not valid: write N/tcp or N/udp with N from 1 to 65535")
        parse_volumes(self.volumes)


class ServiceState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    MIGRATING = "migrating"
    STOPPED = "stopped"


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What runs: one service on one node, at one moment. `image_digest` names the unpacked base image; `container` is
    another engine's own id of it there, `interface` its port's name inside; `shared` identifies the shared storage that
    its root lives on, "" for none."""

    spec: ServiceSpec
    node: str
    state: ServiceState
    pid: int
    mac: str
    image_digest: str
    rss_bytes: int = 0
    processes: int = 0
    started_unix_s: float = 0.0
    migrations: int = 0
    container: str = ""
    interface: str = "eth0"
    shared: str = ""


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    exit_code: int
    stdout: str
    stderr: str


PROBE_S, LEAST_PROBE_S, MOST_PROBE_S = 0.1, 0.01, 10.0
"""About as long as the last round before a freeze takes; and what may be asked for."""


class ServiceProbe(msgspec.Struct, frozen=True, kw_only=True):
    """Two rounds of the tracker over a running service, nothing of it sent (`coordinated`, IV-B): `checkpoint_bytes`
    is the memory that there is (S_lambda), `delta_bytes` what of it was written in the `interval_s` after
    (S_delta-lambda)."""

    service: str
    node: str
    interval_s: float
    checkpoint_bytes: int
    delta_bytes: int


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An image unpacked on a node; `reference`: how it was asked for first, `size_bytes`: what it takes on disk."""

    digest: str
    node: str
    reference: str
    size_bytes: int
