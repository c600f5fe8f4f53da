"""The agent's settings, from a TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec

from whimbrel.logs import Format
from whimbrel.model.errors import BadInput
from whimbrel.model.node import Endpoint, Role, Tier
from whimbrel.model.units import parse_rate_bps, parse_size_bytes

DEFAULT_PORT = 7411
DEFAULT_POWER_FILE = "/var/cache/whimbrel/computing-power.json"


class PathConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator knows of the way to another node: its rate, like ``100mbit``."""

    to: str
    rate: str

    def __post_init__(self) -> None:
        _checked(f"the path to {self.to}", parse_rate_bps, self.rate)

    @property
    def bps(self) -> float:
        return parse_rate_bps(self.rate)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`host` is where the agent listens and where other agents reach it; `overlay_host` its VXLAN tunnel end.

    `bridge_address` (with prefix) is the node's own address on the overlay: gateways need one.
    `overlay_gateway` is the default route of the services that run here. `shared_directory` lies on a file system
    that other nodes mount too (see docs/shared-storage.md); empty: none. `docker_socket` and
    `podman_socket` are where this node's Docker and Podman's API service listen, `lxc_path` is the folder of its LXC
    containers: services may be adopted from them.

    `tier`: how far from the user. `cpus`, `memory` (like ``2GiB``): what the services here share, the whole machine if
    not said. `network` (like ``1gbit``) and `paths` tell planners what the links can carry. `overlay_gateways`: all
    gateways' addresses on the overlay, whom services answer directly; `nat`: subnets of users whose addresses this
    gateway translates. `computing_power_file`: where the benchmark's result is kept, for all agents of the machine.
    `metrics` (``HOST:PORT``): where Prometheus may ask for the node's figures; empty: nowhere. `log`: how to write it.
    """

    name: str
    role: Role
    host: str
    port: int = DEFAULT_PORT
    overlay_host: str = ""
    state_dir: str = ""
    bridge_address: str = ""
    overlay_gateway: str = ""
    shared_directory: str = ""
    docker_socket: str = "/run/docker.sock"
    podman_socket: str = "/run/podman/podman.sock"
    lxc_path: str = "/var/lib/lxc"
    tier: Tier = Tier.EDGE
    cpus: float | None = None
    memory: str = ""
    network: str = ""
    paths: tuple[PathConfig, ...] = ()
    overlay_gateways: tuple[str, ...] = ()
    nat: tuple[str, ...] = ()
    computing_power_file: str = DEFAULT_POWER_FILE
    metrics: str = ""
    log: Format = "text"

    def __post_init__(self) -> None:
        if self.cpus is not None and not 0 < self.cpus < math.inf:
            raise ValueError(f"cpus {self.cpus:g} is no capacity: write a number of processors, like 0.5")
        if self.metrics:
            metrics_place(self.metrics)
        _checked("memory", parse_size_bytes, self.memory or "0")
        _checked("network", parse_rate_bps, self.network or "0bit")
        if self.nat and self.role is not Role.GATEWAY:
            raise ValueError("nat is for gateways: users come in there")
        if self.shared_directory and not Path(self.shared_directory).is_absolute():
            raise ValueError(f"shared_directory {self.shared_directory!r} is not an absolute path")

    @property
    def memory_bytes(self) -> int:
        """What its services share; 0: no limit."""
        return parse_size_bytes(self.memory or "0")

    @property
    def network_bps(self) -> float:
        """What the node can send and receive; 0: as its interface says."""
        return parse_rate_bps(self.network or "0bit")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            name=self.name,
            role=self.role,
            host=self.host,
            port=self.port,
            overlay_host=self.overlay_host or self.host,
        )

    @property
    def directory(self) -> Path:
        return Path(self.state_dir or f"/var/lib/whimbrel/{self.name}")


def metrics_place(text: str) -> tuple[str, int]:
    """``HOST:PORT``, an IPv6 host in brackets. Raises ValueError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"metrics {text!r} is no place to listen: write HOST:PORT, like 127.0.0.1:9177")
    return host, int(port)


def _checked(what: str, parse: Callable[[str], float], text: str) -> None:
    try:
        parse(text)
    except BadInput as error:
        raise ValueError(f"{what}: {error}") from None


def load_config(path: Path) -> AgentConfig:
    """Raises BadInput with the line's own reason."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), AgentConfig)
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist: write the agent's settings there (see docs/agent.md)") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
