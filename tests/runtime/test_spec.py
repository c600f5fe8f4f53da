"""The container's description: what the user asked for, equal on every node, with few rights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whimbrel.model.errors import BadInput
from whimbrel.model.service import ServiceSpec
from whimbrel.runtime.spec import build_spec
from whimbrel.storage.images import Image

IMAGE = Image(
    digest="sha256:" + "0" * 64,
    rootfs=Path("/img"),
    argv=("/run", "--x"),
    entrypoint=("/run",),
    env=("A=1", "PATH=/bin"),
    cwd="/srv",
    uid=5,
    gid=6,
    groups=(7,),
)


def spec_of(image: Image = IMAGE, node: str = "a", **fields: Any) -> dict[str, Any]:
    service = ServiceSpec(name="echo", image="oci:/x", address="10.77.1.1/16", **fields)
    place = Path("/state") / node
    text = build_spec(
        service,
        image,
        rootfs=place / "rootfs",
        shm=place / "shm",
        netns=place / "net",
        cgroup=f"/w/{node}/echo",
    )
    answer: dict[str, Any] = json.loads(text)
    return answer


def test_image_and_service_become_the_process() -> None:
    process = spec_of(env=("A=2", "B=x=y"))["process"]
    assert process["args"] == ["/run", "--x"]
    assert process["cwd"] == "/srv"
    assert process["user"] == {"uid": 5, "gid": 6, "additionalGids": [7]}
    assert process["env"] == ["PATH=/bin", "A=2", "B=x=y"]
    assert process["terminal"] is False


@pytest.mark.parametrize(
    ("entrypoint", "args", "argv"),
    [
        (("/run",), (), ["/run", "--x"]),
        (("/run",), ("-v", "-w"), ["/run", "-v", "-w"]),
        ((), ("/other", "-v"), ["/other", "-v"]),
    ],
)
def test_arguments_replace_the_command_but_not_the_entry_point(
    entrypoint: tuple[str, ...], args: tuple[str, ...], argv: list[str]
) -> None:
    import msgspec

    image = msgspec.structs.replace(IMAGE, entrypoint=entrypoint)
    assert spec_of(image, args=args)["process"]["args"] == argv


def test_image_without_command_needs_one() -> None:
    bare = Image(digest=IMAGE.digest, rootfs=Path("/img"))
    with pytest.raises(BadInput, match="names no command"):
        spec_of(bare)
    assert spec_of(bare, args=("/bin/true",))["process"]["args"] == ["/bin/true"]


@pytest.mark.parametrize("setting", ["NOVALUE", "=x", "A=\0"])
def test_setting_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(BadInput, match="NAME=VALUE"):
        spec_of(env=(setting,))


def test_two_nodes_differ_in_paths_only() -> None:
    here, there = json.dumps(spec_of(node="a")), json.dumps(spec_of(node="b"))
    assert here != there
    assert here.replace("/state/a", "/state/b").replace("/w/a/", "/w/b/") == there


def test_rights_are_few() -> None:
    spec = spec_of()
    assert spec["process"]["noNewPrivileges"] is True
    granted = set(spec["process"]["capabilities"]["bounding"])
    assert not granted & {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_SYS_RAWIO", "CAP_MKNOD"}
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(spec["linux"]["readonlyPaths"])
    assert spec["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert {entry["type"] for entry in spec["linux"]["namespaces"]} == {
        "pid",
        "network",
        "ipc",
        "uts",
        "mount",
    }


def test_no_mount_makes_criu_start_tar() -> None:
    """A tmpfs of the container's own costs 4 ms in the freeze; see the module's docstring."""
    assert "tmpfs" not in {mount["type"] for mount in spec_of()["mounts"]}


def test_memory_limit_counts_swap_too() -> None:
    assert "memory" not in spec_of()["linux"]["resources"]
    assert spec_of(memory_limit_bytes=5 << 20)["linux"]["resources"]["memory"] == {
        "limit": 5 << 20,
        "swap": 5 << 20,
    }
