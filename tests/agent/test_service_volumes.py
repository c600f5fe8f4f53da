"""Volumes of running services: seen inside, kept when asked for, found again, and gone with their service otherwise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_node import SLEEP, ServiceNode

from whimbrel.agent.service_calls import ServiceCalls
from whimbrel.agent.services import ServiceHost
from whimbrel.model.errors import BadInput, Conflict, WhimbrelError
from whimbrel.wire import calls

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for containers"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]
VOLUMES = ("data:/srv/data", "disk:/srv/disk:16MiB")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ServiceNode]:
    made = ServiceNode(tmp_path, "v")
    (made.rootfs / "srv/data").mkdir(parents=True, exist_ok=True)
    (made.rootfs / "srv/data/seed").write_text("from the image\n")
    try:
        yield made
    finally:
        made.close()


async def sh(host: ServiceHost, script: str) -> str:
    call = calls.ExecInService(name="svc", argv=("/bin/sh", "-c", script))
    result = await ServiceCalls(host).handlers()[type(call)](call, lambda _: None)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


async def listed(host: ServiceHost) -> list[tuple[str, bool]]:
    call = calls.ListVolumes()
    found = await ServiceCalls(host).handlers()[type(call)](call, lambda _: None)
    return [(f"{volume.service}/{volume.name}:{volume.path}", volume.in_use) for volume in found]


def test_a_volume_is_inside_and_outlives_its_service_when_asked(node: ServiceNode) -> None:
    async def story(host: ServiceHost) -> None:
        await host.run(node.spec(script=SLEEP, volumes=VOLUMES))
        assert await sh(host, "cat /srv/data/seed") == "from the image\n"
        await sh(host, "echo row > /srv/data/table; echo block > /srv/disk/file; echo x > /etc/layer")
        assert (await host.inspect("svc")).spec.volumes == VOLUMES
        assert await listed(host) == [("svc/data:/srv/data", True), ("svc/disk:/srv/disk", True)]
        upper = host.place("svc").layer.upper
        assert not (upper / "srv/data/table").exists(), "it is outside of the writable layer"
        await host.remove("svc", keep_volumes=True)
        assert await listed(host) == [("svc/data:/srv/data", False), ("svc/disk:/srv/disk", False)]

    async def again(host: ServiceHost) -> None:
        await host.run(node.spec(script=SLEEP, volumes=VOLUMES))
        assert await sh(host, "cat /srv/data/table /srv/disk/file") == "row\nblock\n"
        assert await sh(host, "cat /etc/layer 2>/dev/null || echo gone") == "gone\n"
        await host.remove("svc")
        assert await listed(host) == []

    node.run(story)
    node.run(again)  # as a restarted agent finds it
    node.assert_clean()


def test_a_service_that_fails_to_start_takes_no_kept_volume_with_it(node: ServiceNode) -> None:
    async def story(host: ServiceHost) -> None:
        await host.run(node.spec(script=SLEEP, volumes=VOLUMES))
        await sh(host, "echo row > /srv/data/table")
        await host.remove("svc", keep_volumes=True)
        bad = node.spec(volumes=(*VOLUMES, "fresh:/srv/fresh"))
        for broken in ({"args": ("/no/such/program",)}, {"volumes": ("data:/srv/data:32MiB",)}):
            with pytest.raises(WhimbrelError):
                await host.run(type(bad)(**{**{f: getattr(bad, f) for f in bad.__struct_fields__}, **broken}))
            assert await listed(host) == [("svc/data:/srv/data", False), ("svc/disk:/srv/disk", False)]
        await host.run(node.spec(script=SLEEP, volumes=VOLUMES))
        assert await sh(host, "cat /srv/data/table") == "row\n"

    node.run(story)


def test_a_volume_in_use_stays(node: ServiceNode) -> None:
    async def remove(host: ServiceHost, service: str, name: str) -> None:
        call = calls.RemoveVolume(service=service, name=name)
        await ServiceCalls(host).handlers()[type(call)](call, lambda _: None)

    async def story(host: ServiceHost) -> None:
        await host.run(node.spec(script=SLEEP, volumes=VOLUMES))
        with pytest.raises(Conflict, match="is used by service svc: remove the service"):
            await remove(host, "svc", "data")
        for service, name in (("svc", "other"), ("ghost", "data"), ("..", "services"), ("svc", "../../services")):
            with pytest.raises((BadInput, Conflict)):
                await remove(host, service, name)
        assert await sh(host, "cat /srv/data/seed") == "from the image\n"
        await host.remove("svc", keep_volumes=True)
        await remove(host, "svc", "data")
        await remove(host, "svc", "disk")

    node.run(story)
    node.assert_clean()
