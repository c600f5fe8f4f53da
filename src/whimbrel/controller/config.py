"""The controller's configuration: one TOML file, checked whole before anything starts.

listen = "unix:/run/whimbrel/controller.sock"     # or "tcp:127.0.0.1:8077"
state_dir = "/var/lib/whimbrel/controller"
database = "postgresql://whimbrel@db.example/whimbrel"  # default: SQLite, in state_dir
address_pool = "10.77.1.0/16"                     # services without an address get one from here upwards
experiments_dir = "/srv/whimbrel/out"             # results of experiments that the dashboard shows; default: none
log = "json"                                      # or "text", the default
traces = "http://127.0.0.1:4318/v1/traces"        # an OpenTelemetry collector (OTLP over HTTP); default: none

[[nodes]]
name = "edge-1"
role = "edge"                                     # or "gateway"
host = "192.0.2.11"                               # where its agent listens
port = 7411
overlay_host = "192.0.2.11"                       # its VXLAN tunnel end, IPv4
x_m = 0.0                                         # where it stands on the map, if that is known
y_m = 0.0

[planner] and [[base_stations]]: see `planning.settings`; [api]: see `access`; [mec]: see `mec.settings`.
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path

import msgspec
import sqlalchemy as sa

from whimbrel.controller.access import ApiConfig, ApiEntry, api_of
from whimbrel.controller.database import parse_database
from whimbrel.controller.listen import DEFAULT_LISTEN, Listen, parse_listen
from whimbrel.controller.mec.settings import MecConfig, MecEntry, mec_of
from whimbrel.controller.places import Cell, Place, place_of, with_cells
from whimbrel.controller.planning.settings import PlannerEntry, PlanningConfig, StationEntry, cells_of, planning_of
from whimbrel.controller.traces import check_endpoint
from whimbrel.logs import Format
from whimbrel.model.edge import BaseStation
from whimbrel.model.errors import BadInput
from whimbrel.model.node import Endpoint
from whimbrel.model.service import NAME_PATTERN

DEFAULT_CONFIG = Path("/etc/whimbrel/controller.toml")
DATABASE_FILE = "controller.sqlite3"


class ControllerConfig(msgspec.Struct, frozen=True, kw_only=True):
    listen: Listen
    state_dir: Path
    nodes: tuple[Endpoint, ...]
    address_pool: ipaddress.IPv4Interface = ipaddress.IPv4Interface("10.77.1.0/16")
    database: sa.URL
    planning: PlanningConfig = PlanningConfig()
    api: ApiConfig = ApiConfig()
    places: dict[str, Place] = {}
    experiments_dir: Path | None = None
    log: Format = "text"
    traces: str = ""
    cells: tuple[Cell, ...] = ()
    mec: MecConfig = MecConfig()

    def gateways(self) -> tuple[Endpoint, ...]:
        return tuple(node for node in self.nodes if node.role == "gateway")

    def wifi(self) -> frozenset[str]:
        """Base stations that are access points of a WLAN."""
        said = {station.name: station.technology for station in self.planning.base_stations}
        usual = BaseStation(name="usual", max_users=0).technology
        return frozenset(cell.name for cell in self.cells if said.get(cell.name, usual).startswith("802.11"))


class _NodeEntry(Endpoint, frozen=True, kw_only=True, forbid_unknown_fields=True):
    x_m: float | None = None
    y_m: float | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nodes: tuple[_NodeEntry, ...]
    listen: str = DEFAULT_LISTEN
    state_dir: str = "/var/lib/whimbrel/controller"
    address_pool: str = "10.77.1.0/16"
    database: str = ""
    planner: PlannerEntry = PlannerEntry()
    base_stations: tuple[StationEntry, ...] = ()
    api: ApiEntry = ApiEntry()
    mec: MecEntry = MecEntry()
    experiments_dir: str = ""
    log: Format = "text"
    traces: str = ""


def load(path: Path) -> ControllerConfig:
    """Read and check a configuration file. Raises BadInput that names the file, the entry and the way out."""
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise BadInput(
            f"there is no controller configuration at {path}: write one (docs/cli.md shows how) or name it "
            "with --config"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    try:
        return parse(text)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def parse(text: str) -> ControllerConfig:
    """The same for the text of a file. Raises BadInput."""
    try:
        entries = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"not a controller configuration: {error}") from error
    state_dir = Path(entries.state_dir)
    if not state_dir.is_absolute():
        raise BadInput(f"state_dir {entries.state_dir!r} is not an absolute path")
    nodes = tuple(msgspec.convert(entry, Endpoint, from_attributes=True) for entry in entries.nodes)
    _check_nodes(nodes)
    cells = cells_of(entries.base_stations, [node.name for node in nodes if node.role == "gateway"])
    places = {entry.name: place_of(f"node {entry.name}", entry.x_m, entry.y_m) for entry in entries.nodes}
    try:
        pool = ipaddress.IPv4Interface(entries.address_pool)
    except ValueError as error:
        raise BadInput(f"address_pool {entries.address_pool!r} is not IPv4: write it like 10.77.1.0/16") from error
    if not 8 <= pool.network.prefixlen <= 30:
        raise BadInput(f"address_pool {entries.address_pool!r} needs a prefix from /8 to /30")
    listen = parse_listen(entries.listen)
    api = api_of(entries.api, listen)
    return ControllerConfig(
        listen=listen,
        state_dir=state_dir,
        nodes=nodes,
        address_pool=pool,
        database=parse_database(entries.database, state_dir / DATABASE_FILE),
        planning=planning_of(
            entries.planner, entries.base_stations, {node.name for node in nodes if node.role == "gateway"}
        ),
        api=api,
        experiments_dir=_experiments_dir(entries.experiments_dir),
        log=entries.log,
        traces=check_endpoint(entries.traces),
        places=with_cells({name: place for name, place in places.items() if place is not None}, cells),
        cells=cells,
        mec=mec_of(entries.mec, cells, api.tokens, local=listen.is_local and not api.tokens and not api.hosts),
    )


def _experiments_dir(text: str) -> Path | None:
    if text and not Path(text).is_absolute():
        raise BadInput(f"experiments_dir {text!r} is not an absolute path")
    return Path(text) if text else None


def _check_nodes(nodes: tuple[Endpoint, ...]) -> None:
    if not nodes:
        raise BadInput("no node is named: add at least one [[nodes]] entry")
    names: set[str] = set()
    places: dict[tuple[str, int], str] = {}
    tunnels: dict[str, str] = {}
    for node in nodes:
        if not NAME_PATTERN.fullmatch(node.name):
            raise BadInput(f"node name {node.name!r} is not valid: use 1 to 40 of a-z, 0-9 and '-', not at an end")
        if node.name in names:
            raise BadInput(f"node {node.name} is named twice: names are unique in a region")
        names.add(node.name)
        if not node.host or not 0 < node.port < 65536:
            raise BadInput(f"node {node.name}: {node.host!r}:{node.port} is no place: give host and port 1 to 65535")
        try:
            ipaddress.IPv4Address(node.overlay_host)
        except ValueError as error:
            raise BadInput(f"node {node.name}: overlay_host {node.overlay_host!r} is not an IPv4 address") from error
        for what, key, known in (
            ("agent address", f"{node.host}:{node.port}", places.get((node.host, node.port))),
            ("overlay_host", node.overlay_host, tunnels.get(node.overlay_host)),
        ):
            if known:
                raise BadInput(f"nodes {known} and {node.name} have the same {what} {key}: each needs its own")
        places[node.host, node.port] = node.name
        tunnels[node.overlay_host] = node.name
