"""A controller on loopback TCP, in front of fake agents, as consumers of the MEC interfaces meet it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import yaml
from planning_people import report

from fakes import FakeRegion, free_port
from inbox import Inbox as Inbox
from live_controller import LiveController
from whimbrel.model.node import PathStatus
from whimbrel.model.radio import HandoverRecord, Hears, UserReport

MEC = """
[mec]
callbacks = ["127.0.0.0/8"]
plmn = "00101"
origin = { lat = 48.0, lon = 16.0 }

[mec.users]
ue-1 = "10.77.200.1"
ue-2 = "10.77.200.2"
"""
STATIONS = ("gw-1", "gw-2", "gw-3")
"""The first two are in zone `north`, the third in `south`."""
LEVELS_DBM = {"gw-1": -50.0, "gw-2": -60.0, "gw-3": -70.0}
SPECS = Path(__file__).parent / "specs"


def report_of(user: str, serving: str = "gw-1", **changes: Any) -> UserReport:
    """`x_m`, `y_m`: where it is."""
    hears = tuple(Hears(base_station=n, rssi_dbm=level, filtered_dbm=level) for n, level in LEVELS_DBM.items())
    return report(user, serving=serving, **({"hears": hears} | changes))


def handover_of(user: str, source: str, target: str, **changes: Any) -> HandoverRecord:
    values = {"reason": "stronger", "unix_s": time.time(), "elapsed_s": 1.0, "interruption_ms": 30.0}
    return HandoverRecord(user=user, source=source, target=target, **(values | changes))


def check_shape(specification: str, schema: str, value: Any) -> None:
    """A value is what the specification's file says of it."""
    spec = yaml.safe_load((SPECS / f"{specification}-v2.2.1.yaml").read_text())
    wanted = {"$ref": f"#/components/schemas/{schema}", "components": {"schemas": spec["components"]["schemas"]}}
    jsonschema_rs.Draft4Validator(wanted).validate(value)


class MecServer(LiveController):
    """`extra`: more of its configuration; what is in `[planner]` comes first."""

    def __init__(
        self, region: FakeRegion, directory: Path, *, extra: str = MEC, planner: str = "", token: str = ""
    ) -> None:
        super().__init__(region, directory, token=token)
        port = free_port()
        self.address = f"tcp:127.0.0.1:{port}"
        self.url = f"http://127.0.0.1:{port}"
        text = region.config_text(self.address, str(directory / "state"))
        here = text.rindex('zone = "north"')
        text = text[:here] + 'zone = "south"' + text[here + len('zone = "north"') :]
        self._config.write_text(text + planner + extra)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, verify=False)

    def tell(self, event: Any) -> None:
        """As a user's equipment does."""
        with self.http() as http:
            answer = http.post(f"/v1/users/{event.user}/events", content=msgspec.json.encode(event))
            assert answer.status_code == 200, answer.text

    def run(self, name: str, node: str) -> None:
        body = {"name": name, "node": node, "image": "oci:/x", "ports": ["80/tcp"]}
        with self.http() as http:
            answer = http.post("/v1/services", json=body)
            assert answer.status_code == 201, answer.text

    def migrate(self, service: str, to: str, **fields: Any) -> httpx.Response:
        with self.http() as http:
            return http.post("/v1/migrations", json={"service": service, "destination": to} | fields)


@contextmanager
def serving(directory: Path, *, extra: str = MEC, planner: str = "", token: str = "") -> Iterator[MecServer]:
    with FakeRegion(STATIONS) as region:
        for name, agent in region.agents.items():
            agent.paths = tuple(
                PathStatus(to=other, round_trip_ms=1.0 if name[-1] == other[-1] else 50.0, rate_bps=1e8)
                for other in region.agents
                if other != name
            )
        server = MecServer(region, directory, extra=extra, planner=planner, token=token)
        try:
            server.start()
            yield server
        finally:
            server.stop()
