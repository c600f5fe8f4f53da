"""The configuration files that the lab writes for its agents and its controller."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path

from whimbrel.lab.radio import user_overlay_address
from whimbrel.lab.routes import path, uplink_bps
from whimbrel.lab.topology import Edge, Gateway, Topology
from whimbrel.model.node import Tier
from whimbrel.ran.pathloss import Station

Value = str | int | float | list[str]
DEFAULT_LAB_DIR = Path("/var/lib/whimbrel/lab")


RESULTS = Path("out")
"""Where `whimbrel experiment run` writes, started in the same folder as the lab: the dashboard shows what is there."""


def controller_socket(lab_dir: Path) -> Path:
    return lab_dir / "controller.sock"


def agent_config(lab_dir: Path, site: str) -> Path:
    return lab_dir / site / "agent.toml"


def controller_config(lab_dir: Path) -> Path:
    return lab_dir / "controller.toml"


def shared_directory(lab_dir: Path, edge: str) -> Path:
    """Where an edge mounts the lab's storage."""
    return lab_dir / edge / "shared"


def write_configs(topology: Topology, lab_dir: Path) -> None:
    for site in topology.sites:
        path = agent_config(lab_dir, site.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_agent_text(topology, site, path.parent))
    controller_config(lab_dir).write_text(_controller_text(topology, lab_dir))


def _agent_text(topology: Topology, site: Edge | Gateway, state_dir: Path) -> str:
    endpoint = topology.endpoint(site)
    values: dict[str, Value] = {
        "name": endpoint.name,
        "role": endpoint.role.value,
        "host": endpoint.host,
        "port": endpoint.port,
        "overlay_host": endpoint.overlay_host,
        "state_dir": str(state_dir),
        "overlay_gateway": topology.gateways[0].overlay_address,
        # a node of its own has engines of its own: whoever wants one in a lab starts it there
        "docker_socket": str(state_dir / "engines/docker.sock"),
        "podman_socket": str(state_dir / "engines/podman.sock"),
        "lxc_path": str(state_dir / "engines/lxc"),
    }
    values["overlay_gateways"] = [gateway.overlay_address for gateway in topology.gateways]
    if rate_bps := uplink_bps(topology, site.name):
        values["network"] = f"{rate_bps:.0f}bit"
    if isinstance(site, Edge):
        values["tier"] = site.tier.value
        values |= {"cpus": site.cpus} if site.cpus is not None else {}
        values |= {"memory": site.memory} if site.memory else {}
    if site in topology.storage_edges:
        values["shared_directory"] = str(shared_directory(state_dir.parent, site.name))
    if isinstance(site, Gateway):
        values["bridge_address"] = topology.bridge_address(site)
        values |= {"nat": [site.access_subnet]} if site.nat else {}
    return _lines(values) + _paths_text(topology, site)


def _paths_text(topology: Topology, site: Edge | Gateway) -> str:
    rates = {other.name: path(topology, site.name, other.name).rate_bps for other in topology.sites if other != site}
    return "".join(
        "\n[[paths]]\n" + _lines({"to": name, "rate": f"{rate_bps:.0f}bit"})
        for name, rate_bps in rates.items()
        if rate_bps
    )


def _controller_text(topology: Topology, lab_dir: Path) -> str:
    overlay = IPv4Network(topology.overlay_subnet)
    first = overlay[min(256, overlay.num_addresses // 2)]
    text = _lines(
        {
            "listen": f"unix:{controller_socket(lab_dir)}",
            "state_dir": str(lab_dir / "controller"),
            "address_pool": f"{first}/{overlay.prefixlen}",
            "experiments_dir": str(RESULTS.absolute()),
        }
    )
    cells = _cells(topology)
    for site in topology.sites:
        endpoint = topology.endpoint(site)
        text += "\n[[nodes]]\n" + _lines(
            {
                "name": endpoint.name,
                "role": endpoint.role.value,
                "host": endpoint.host,
                "port": endpoint.port,
                "overlay_host": endpoint.overlay_host,
                **_place(topology, site, cells),
            }
        )
    for gateway in topology.gateways:
        values: dict[str, Value] = {"max_users": gateway.max_users} if gateway.max_users is not None else {}
        if (cell := cells.get(gateway.name)) is not None:
            values |= {"x_m": cell.x_m, "y_m": cell.y_m, "reach_m": round(cell.loss.reach_m(cell.height_m), 1)}
            values |= {"zone": _nearest(topology, gateway.name, [edge.name for edge in topology.edges])}
        if values:
            text += "\n[[base_stations]]\n" + _lines({"name": gateway.name, **values})
    if topology.radio is not None and topology.users:  # the address that stays with a user wherever it goes
        addresses = {user.name: str(user_overlay_address(topology, user)) for user in topology.users}
        text += "\n[mec.users]\n" + _lines(addresses)
    return text


def _cells(topology: Topology) -> Mapping[str, Station]:
    return topology.radio.air().stations if topology.radio is not None else {}


def _place(topology: Topology, site: Edge | Gateway, cells: Mapping[str, Station]) -> dict[str, Value]:
    """An edge server stands with the base station that reaches it first, if it is there at once; one beyond an uplink
    is on no map."""
    if isinstance(site, Edge) and site.tier is not Tier.EDGE:
        return {}
    name = _nearest(topology, site.name, list(cells)) if isinstance(site, Edge) and cells else site.name
    cell = cells.get(name)
    return {"x_m": cell.x_m, "y_m": cell.y_m} if cell is not None else {}


def _nearest(topology: Topology, name: str, others: Sequence[str]) -> str:
    """By delay; of those that are as near the first."""
    return min(others, key=lambda other: path(topology, name, other).delay_ms)


def _lines(values: Mapping[str, Value]) -> str:
    """TOML keys; a JSON string without escapes beyond the basic ones is a TOML string too, and so with numbers and
    lists."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
