"""The figures of a node for Prometheus."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlopen

import msgspec
import pytest

from fakes import free_port
from whimbrel.agent.config import AgentConfig
from whimbrel.agent.metrics import serve_metrics
from whimbrel.agent.monitor import Monitor
from whimbrel.model.errors import Refused
from whimbrel.model.node import Role


def config(tmp_path: Path, metrics: str) -> AgentConfig:
    return AgentConfig(name="edge-m", role=Role.EDGE, host="127.0.0.1", state_dir=str(tmp_path), metrics=metrics)


def test_a_node_shows_its_figures_where_it_is_told_to(tmp_path: Path) -> None:
    settings = config(tmp_path, f"127.0.0.1:{free_port()}")
    server = serve_metrics(settings, Monitor(settings, dict))
    try:
        text = urlopen(f"http://{settings.metrics}/metrics", timeout=20).read().decode()
        assert 'whimbrel_agent_memory_available_bytes{node="edge-m"}' in text
        assert 'whimbrel_agent_info{node="edge-m",role="edge"' in text
        with pytest.raises(Refused, match=settings.metrics):
            serve_metrics(settings, Monitor(settings, dict))
    finally:
        server.close()
    serve_metrics(settings, Monitor(settings, dict)).close()  # the place is free again


@pytest.mark.parametrize("metrics", ["9177", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000"])
def test_a_place_that_is_none_is_named(metrics: str) -> None:
    values = {"name": "e", "role": "edge", "host": "h", "metrics": metrics}
    with pytest.raises(msgspec.ValidationError, match="HOST:PORT"):
        msgspec.convert(values, AgentConfig)


def test_it_is_off_unless_asked_for() -> None:
    assert not AgentConfig(name="e", role=Role.EDGE, host="h").metrics
