"""What holds for all tests: how they share the processors, and what a failure prints."""

from __future__ import annotations

import os

import pytest

AT_ONCE = "PYTEST_XDIST_WORKER" in os.environ
LONG = ("migrate", "bench", "memory", "network", "experiments", "lab", "controller", "ue")  # folders, the longest first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones begin first: else one worker would have them left when the others have nothing more to do."""
    if AT_ONCE:
        items.sort(key=lambda item: LONG.index(name) if (name := item.path.parent.name) in LONG else len(LONG))


class AtOnce:
    """A failure is printed when it happens: a run that is cut off has still said what was wrong."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}")


def pytest_configure(config: pytest.Config) -> None:
    if not AT_ONCE:
        config.pluginmanager.register(AtOnce(config))
