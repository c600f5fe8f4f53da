"""An engine that is not installed or does not run: who refuses says so, and names what can be had instead."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from whimbrel.agent import engine_checks
from whimbrel.agent.guests import Guests
from whimbrel.model.errors import Refused
from whimbrel.model.service import EngineKind
from whimbrel.network.port import ServicePort
from whimbrel.runtime.engines.docker import Docker
from whimbrel.runtime.engines.lxc import Lxc
from whimbrel.runtime.engines.podman import Podman


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All programs that there are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def guests(tmp_path: Path) -> Guests:
    """Of a node whose engines' sockets nobody listens on."""
    containers = tmp_path / "lxc"
    containers.mkdir()
    return Guests(
        "edge-9",
        ServicePort(tmp_path / "netns"),
        "",
        {
            EngineKind.DOCKER: Docker(tmp_path / "docker.sock"),
            EngineKind.PODMAN: Podman(tmp_path / "podman.sock"),
            EngineKind.LXC: Lxc(containers, tmp_path, "criu"),
        },
    )


def install(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_who_adopts_from_an_engine_that_is_away_hears_which_is_there(guests: Guests, programs: Path) -> None:
    with pytest.raises(Refused) as refusal:
        asyncio.run(guests.look(EngineKind.DOCKER, "web"))
    line = str(refusal.value)
    assert line.startswith("edge-9: Docker does not answer at ")
    assert "`docker_socket` in agent.toml; no other engine can be had here, or choose a node whose" in line
    assert "\n" not in line
    install(programs, "lxc-info", "echo 5.0.2")
    with pytest.raises(Refused, match=r"; lxc can be had here, or choose a node whose `whimbrel check` finds docker"):
        asyncio.run(guests.look(EngineKind.DOCKER, "web"))


def test_lxc_that_is_not_installed(guests: Guests, programs: Path) -> None:
    with pytest.raises(Refused, match=r"edge-9: lxc-info is not installed here; no other engine can be had here, or"):
        asyncio.run(guests.look(EngineKind.LXC, "sys"))


@pytest.mark.parametrize("kind", [EngineKind.DOCKER, EngineKind.PODMAN, EngineKind.LXC])
def test_a_container_does_not_come_where_its_engine_is_away(guests: Guests, programs: Path, kind: EngineKind) -> None:
    with pytest.raises(Refused) as refusal:
        asyncio.run(guests.offer(kind, b""))
    assert str(refusal.value).endswith(f"; or choose a node whose `whimbrel check` finds {kind} in order")


@pytest.fixture
def agent_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = tmp_path / "agent.toml"
    config.write_text(
        f'name = "edge-9"\nrole = "edge"\nhost = "127.0.0.1"\ndocker_socket = "{tmp_path}/other.sock"\n'
        f'lxc_path = "{tmp_path}/containers"\n'
    )
    monkeypatch.setattr(engine_checks, "CONFIG", config)
    return config


def test_the_check_tells_why_an_engine_that_is_there_cannot_be_had(
    agent_toml: Path, programs: Path, tmp_path: Path
) -> None:
    nothing_there = (True, "not installed, and not needed unless its containers shall move", "")
    assert engine_checks.docker() == engine_checks.lxc() == nothing_there
    install(programs, "dockerd", "exit 1")
    in_order, found, way_out = engine_checks.docker()
    assert not in_order
    assert f"Docker does not answer at {tmp_path}/other.sock (" in found, "where agent.toml says, and why"
    assert "systemctl start docker" in way_out
    for name in ("lxc-start", "lxc-checkpoint"):
        install(programs, name, "exit 0")
    install(programs, "lxc-info", "echo 5.0.2")
    install(programs, "lxc-ls", "echo it is broken >&2; exit 1")
    assert engine_checks.lxc()[:2] == (
        False,
        f"LXC has no folder {tmp_path}/containers: make it, or name another as `lxc_path` in agent.toml",
    )
    (tmp_path / "containers").mkdir()
    assert engine_checks.lxc()[:2] == (
        False,
        f"5.0.2 cannot list its containers in {tmp_path}/containers: it is broken",
    )
    install(programs, "lxc-ls", "exit 0")
    assert engine_checks.lxc()[0]
