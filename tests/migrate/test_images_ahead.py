"""The image comes along when the destination has none: whole, once for all that wait for it, or not at all."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marks import thorough
from tests.migrate.conftest import EDGES, Lab, programs
from tests.migrate.disturb import kill_agent, kill_all, link_of, until
from whimbrel.model.migration import MigrationRecord, Outcome, Progress

SLEEP = ["/usr/bin/python3", "-c", "import time; time.sleep(3600)"]
SOURCE, DESTINATION, THIRD = EDGES


@dataclass
class Move:
    """A migration in the background."""

    lab: Lab
    name: str
    to: str = DESTINATION
    news: list[Progress] = field(default_factory=list)
    record: MigrationRecord | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.record = self.lab.controller.migrate(self.name, self.to, on_progress=self.news.append)

    def told(self, words: str) -> bool:
        return any(words in news.detail for news in self.news)

    def end(self) -> MigrationRecord:
        self._thread.join(timeout=90)
        assert self.record is not None, "the migration does not end"
        return self.record


@pytest.fixture
def own_image(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A folder that no node has unpacked yet: one file of its own beside the demo's image, for its digest."""
    kind, _, place = lab.image.partition(":")
    assert kind == "oci"
    stored = next(image for image in _unpacked(lab) if image.reference == lab.image)
    root = tmp_path / "rootfs"
    shutil.copytree(
        lab.state_dir(stored.node) / "images" / stored.digest.removeprefix("sha256:") / "rootfs", root, symlinks=True
    )
    (root / "own").write_text(str(time.time_ns()))
    assert place
    yield root
    lab.disarm()
    for node in EDGES:
        if lab.agent_pid(node) == 0:
            lab.restart_agent(node)


def _unpacked(lab: Lab) -> list:  # type: ignore[type-arg]
    if not any(image.reference == lab.image for image in lab.controller.images().images):
        lab.controller.run_service("unpacks", lab.image, SOURCE, args=SLEEP)
        lab.controller.remove_service("unpacks")
    return list(lab.controller.images().images)


@pytest.fixture
def services(lab: Lab, own_image: Path) -> Iterator[list[str]]:
    """Two services of one image, which is nowhere any more but on the node where they run."""
    names = ["first", "second"]
    for name in names:
        lab.controller.run_service(name, f"rootfs:{own_image}", SOURCE, args=SLEEP)
    shutil.rmtree(own_image)
    try:
        yield names
    finally:
        lab.disarm()
        for name in names:
            until(lambda name=name: _is_settled(lab, name), f"{name} does not settle", 30)
            lab.controller.remove_service(name)


def _is_settled(lab: Lab, name: str) -> bool:
    return not any(
        record.service == name and record.outcome is Outcome.RUNNING for record in lab.controller.migrations()
    )


def half_images(lab: Lab, node: str) -> list[Path]:
    return list((lab.state_dir(node) / "images").glob(".new-*"))


def takers(lab: Lab, node: str) -> list[int]:
    return programs(lab, node, "takeimage")


def test_an_image_that_is_nowhere_else_comes_along_once(lab: Lab, services: list[str]) -> None:
    digest = lab.controller.service(services[0]).image_digest
    for target, sends in ((DESTINATION, True), (THIRD, True), (DESTINATION, False)):
        record = lab.controller.migrate(services[0], target)
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        assert (record.image_bytes > 1 << 20) is sends
        assert record.bytes_sent >= record.image_bytes
        assert half_images(lab, target) == []
    result = lab.controller.exec(services[0], ["/usr/bin/python3", "-c", "print(len(open('/own').read()) > 10)"])
    assert result.stdout == "True\n"
    trees = {
        (lab.state_dir(node) / "images" / digest.removeprefix("sha256:") / "image.json")
        .read_text()
        .split('"tree"')[1][:80]
        for node in EDGES
    }
    assert len(trees) == 1, "all nodes vouch for the same files"


def test_of_several_migrations_one_brings_it(lab: Lab, services: list[str]) -> None:
    lab.arm("takeimage.arrived")
    first = Move(lab, services[0])
    lab.wait_reached("takeimage.arrived")
    second = Move(lab, services[1])
    until(lambda: second.told("another node is bringing it"), "the second does not say what it waits for")
    assert len(takers(lab, DESTINATION)) == 1
    lab.disarm()
    records = [first.end(), second.end()]
    assert [(record.outcome, record.error) for record in records] == [(Outcome.DONE, "")] * 2
    assert records[0].image_bytes > 0
    assert records[1].image_bytes == 0
    for name in services:
        assert lab.controller.service(name).node == DESTINATION


@pytest.mark.parametrize(
    "victim", ["the link", *thorough("the process that takes it", "the agent there", "the process that sends it")]
)
def test_a_broken_transfer_leaves_nothing_and_can_be_repeated(lab: Lab, services: list[str], victim: str) -> None:
    lab.arm("takeimage.arrived")
    move = Move(lab, services[0])
    lab.wait_reached("takeimage.arrived")
    assert len(half_images(lab, DESTINATION)) == 1
    with link_of(lab) as link:
        if victim == "the agent there":
            kill_agent(lab, DESTINATION)
            until(lambda: not takers(lab, DESTINATION), "the process that takes the image outlives its agent")
        elif victim == "the process that takes it":
            kill_all(takers(lab, DESTINATION))
        elif victim == "the process that sends it":
            kill_all(programs(lab, SOURCE, "sendfiles"))
        else:
            link.cut()
            until(lambda: not programs(lab, SOURCE, "sendfiles"), "the source does not notice that the link is dead")
        lab.disarm()
        record = move.end()
    assert record.outcome is Outcome.ROLLED_BACK
    assert record.error
    assert "\n" not in record.error
    if lab.agent_pid(DESTINATION) == 0:
        lab.restart_agent(DESTINATION)
    until(lambda: not half_images(lab, DESTINATION) and not takers(lab, DESTINATION), "a half image is left")
    assert lab.controller.service(services[0]).node == SOURCE
    assert lab.leftovers(DESTINATION, services[0]) == []
    again = lab.controller.migrate(services[0], DESTINATION)
    assert (again.outcome, again.error) == (Outcome.DONE, "")
    # of what had arrived whole by then, and was found in order, nothing crosses again
    assert again.image_bytes > 0 or victim in ("the process that sends it", "the link")


def test_an_image_is_brought_before_a_service_needs_it(lab: Lab, services: list[str]) -> None:
    digest = lab.controller.service(services[0]).image_digest
    pushed = lab.controller.push_image(digest[:20], THIRD)
    assert (pushed.digest, pushed.source, pushed.destination) == (digest, SOURCE, THIRD)
    assert pushed.sent_bytes > 1 << 20
    assert lab.controller.push_image(digest, THIRD).sent_bytes == 0
    assert {image.node for image in lab.controller.images().images if image.digest == digest} == {SOURCE, THIRD}
    record = lab.controller.migrate(services[0], THIRD)
    assert (record.outcome, record.image_bytes) == (Outcome.DONE, 0)


def test_a_dry_run_brings_nothing(lab: Lab, services: list[str]) -> None:
    record = lab.controller.migrate(services[0], DESTINATION, dry_run=True)
    assert record.outcome is Outcome.DRY_RUN
    digest = lab.controller.service(services[0]).image_digest
    assert {image.node for image in lab.controller.images().images if image.digest == digest} == {SOURCE}
