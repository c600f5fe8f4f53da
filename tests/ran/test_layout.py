"""The section [radio] of a topology."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from whimbrel.lab import topology, topology_checks
from whimbrel.lab.radio import user_overlay_address
from whimbrel.model.errors import BadInput

SHIPPED = Path(topology.__file__).parent / "topologies"
HANDOVER = re.compile("^handover = .*\n", re.M)  # so that a test can say it
GOOD = HANDOVER.sub("", (SHIPPED / "walk.toml").read_text()).replace("speed_m_per_s = 5.0", "speed_m_per_s = 1.0")


def load(tmp_path: Path, text: str) -> topology.Topology:
    file = tmp_path / "region.toml"
    file.write_text(text)
    return topology.load(file)


def test_the_shipped_walk_is_whole() -> None:
    found = topology.load(Path("walk"))
    assert found.radio is not None
    air = found.radio.air()
    assert list(air.stations) == ["gw-1", "gw-2", "gw-3"]
    track = found.radio.track(found.radio.walker("ue-1"))
    assert track.duration_s == 20
    assert track.at(30).x_m == 50, "there and back"
    assert str(user_overlay_address(found, found.users[0])) == "10.77.255.254"


def test_a_topology_without_radio_stays_as_it_was() -> None:
    assert topology.load().radio is None


def test_what_a_base_station_says_of_itself_takes_the_place_of_the_sections() -> None:
    text = GOOD.replace("seed = 1", "seed = 1\npath_loss = { exponent = 3.5, shadowing_db = 6.0 }")
    text = text.replace("x_m = 50.0, y_m = 0.0", "x_m = 50.0, y_m = 0.0, exponent = 2.5, transmit_power_dbm = 30.0")
    found = topology_checks.check(msgspec.toml.decode(text, type=topology.Topology))
    assert found.radio is not None
    losses = {name: station.loss for name, station in found.radio.air().stations.items()}
    assert (losses["gw-1"].exponent, losses["gw-1"].transmit_power_dbm) == (3.5, 20.0)
    assert (losses["gw-2"].exponent, losses["gw-2"].transmit_power_dbm) == (2.5, 30.0)
    assert losses["gw-2"].shadowing_db == 6.0


def test_places_in_degrees(tmp_path: Path) -> None:
    text = GOOD.replace("seed = 1", "seed = 1\norigin = { lat = 1.34, lon = 103.96 }")
    text = text.replace("x_m = 50.0, y_m = 0.0", "lat = 1.34, lon = 103.961")
    found = load(tmp_path, text)
    assert found.radio is not None
    assert found.radio.air().stations["gw-2"].x_m == pytest.approx(111.17, abs=0.1)


def test_files_of_ways_count_from_the_topologys_folder(tmp_path: Path) -> None:
    way = 'gpx = "way.gpx"\ncourse'
    text = GOOD.replace("course", way, 1).replace(
        "waypoints = [{ x_m = 0.0, y_m = 5.0 }, { x_m = 100.0, y_m = 5.0 }]", ""
    )
    found = load(tmp_path, text)
    assert found.radio is not None
    assert found.radio.users[0].gpx == str(tmp_path / "way.gpx")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('{ name = "gw-2", x_m', '{ name = "gw-9", x_m', "base station gw-9: there is no gateway of that name"),
        ('{ name = "gw-2", x_m', '{ name = "gw-1", x_m', "base station gw-1 is there twice"),
        ("x_m = 50.0, y_m = 0.0", "x_m = 50.0", "base station gw-2: say where it is"),
        ("x_m = 50.0, y_m = 0.0", "x_m = nan, y_m = 0.0", "base station gw-2: nan, 0.0 is no place"),
        ("x_m = 50.0, y_m = 0.0", "lat = 1.0, lon = 2.0", "say which place is (0, 0) by origin"),
        ("x_m = 50.0, y_m = 0.0", "x_m = 50.0, y_m = 0.0, exponent = 99.0", "gw-2: exponent 99 is not possible"),
        ("x_m = 50.0, y_m = 0.0", "x_m = 50.0, y_m = 0.0, height_m = -1.0", "gw-2: height_m -1 is not possible"),
        ("x_m = 50.0, y_m = 0.0", "x_m = 50.0, y_m = 0.0, hight = 3", "unknown field `hight`"),
        ('attached = ["gw-1", "gw-2", "gw-3"]', 'attached = ["gw-1"]', "base station gw-2 is missing: add it"),
        ('name = "ue-1"\ncourse', 'name = "ue-7"\ncourse', "there is no user 'ue-7' in this topology, only ue-1"),
        ("speed_m_per_s = 1.0", "speed_m_per_s = 0.0", "speed to waypoint 2 is 0 m/s"),
        ("speed_m_per_s = 1.0", "speed_m_per_s = 1.0\nsumo = 'a.xml'", "give one of waypoints, gpx and sumo"),
        ("waypoints = [", "sumo = 'a.xml' #", "sumo and vehicle belong together"),
        ("waypoints = [", "#", "give one of waypoints, gpx and sumo, not none"),
        ("seed = 1", "seed = -1", "seed -1 is not possible"),
        ("seed = 1", "handover = { margin_db = nan }", "margin_db nan is not possible"),
        ("seed = 1", "handover = { in_flight = 'lose' }", "Invalid enum value 'lose'"),
        ("seed = 1", "path_loss = { correlation_m = 0.0 }", "correlation_m 0 is not possible"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(BadInput) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert said in str(caught.value)
    assert "region.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
