"""The agent's settings: what docs/agent.md shows is taken, and a mistake is one line that names file and cause."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from whimbrel.agent.config import AgentConfig, load_config
from whimbrel.model.errors import BadInput
from whimbrel.model.node import Role

PLAIN = 'name = "edge-1"\nrole = "edge"\nhost = "192.0.2.11"\n'
GUIDE = Path(__file__).parents[2] / "docs/agent.md"


def load(tmp_path: Path, text: str) -> AgentConfig:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load_config(path)


def test_what_the_guide_shows_is_taken_and_its_defaults_are_the_defaults(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```toml\n(name = .*?)^```", GUIDE.read_text(), re.M | re.S)
    config = load(tmp_path, shown)
    plain = load(tmp_path, PLAIN)
    assert (config.name, config.role, config.host) == ("edge-1", Role.EDGE, "192.0.2.11")
    assert (config.overlay_gateway, config.shared_directory) == ("10.77.0.1", "/srv/shared")
    assert config.endpoint == plain.endpoint
    assert config.directory == plain.directory == Path("/var/lib/whimbrel/edge-1")
    for name in ("docker_socket", "podman_socket", "lxc_path", "tier", "computing_power_file"):
        assert getattr(config, name) == getattr(plain, name)
    told = set(re.findall(r"^(\w+) = ", GUIDE.read_text(), re.M))
    assert set(AgentConfig.__struct_fields__) <= told, "every setting stands in the guide"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing required field"),
        ("name = [", "Invalid value"),
        (PLAIN.replace('"edge"', '"cloud"'), "cloud"),
        (PLAIN + 'port = "many"\n', "port"),
        (PLAIN + 'colour = "red"\n', "colour"),
        (PLAIN + "cpus = 0\n", "cpus 0 is no capacity"),
        (PLAIN + "cpus = nan\n", "cpus nan is no capacity"),
        (PLAIN + 'memory = "much"\n', "memory: 'much' is not a size"),
        (PLAIN + 'network = "fast"\n', "network: 'fast' is not a bandwidth"),
        (PLAIN + '[[paths]]\nto = "edge-2"\nrate = "far"\n', "the path to edge-2: 'far' is not a bandwidth"),
        (PLAIN + 'nat = ["10.99.0.0/24"]\n', "nat is for gateways"),
        (PLAIN + 'tier = "heaven"\n', "heaven"),
        (PLAIN + 'shared_directory = "srv"\n', "'srv' is not an absolute path"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput) as raised:
        load(tmp_path, text)
    line = str(raised.value)
    assert line.startswith(f"{tmp_path / 'agent.toml'}: ")
    assert says in line
    assert "\n" not in line


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"agent\.toml does not exist: write the agent's settings there"):
        load_config(tmp_path / "agent.toml")
