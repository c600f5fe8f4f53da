"""The agent's settings, from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.node import Endpoint, Role

DEFAULT_PORT = 7411


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`host` is where the agent listens and where other agents reach it; `overlay_host` its VXLAN tunnel end.

    `bridge_address` (with prefix) is the node's own address on the overlay: gateways need one.
    `overlay_gateway` is the default route of the services that run here. `shared_directory` lies on a file system
    that other nodes mount too (see docs/shared-storage.md); empty: none. `docker_socket` and
    `podman_socket` are where this node's Docker and Podman's API service listen, `lxc_path` is the folder of its LXC
    containers: services may be adopted from them.
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

    def __post_init__(self) -> None:
        if self.shared_directory and not Path(self.shared_directory).is_absolute():
            raise ValueError(f"shared_directory {self.shared_directory!r} is not an absolute path")

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


def load_config(path: Path) -> AgentConfig:
    """Raises BadInput with the line's own reason."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), AgentConfig)
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist: write the agent's settings there (see docs/agent.md)") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
