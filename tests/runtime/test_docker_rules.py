"""Which of Docker's containers can move, by their settings."""

from __future__ import annotations

from typing import Any

import pytest

from whimbrel.model.errors import Refused
from whimbrel.runtime.engines.docker_rules import refuse_container, refuse_settings, settings_there

PLAIN: dict[str, Any] = {
    "Name": "/web",
    "Driver": "overlay2",
    "State": {"Status": "running", "Running": True, "Paused": False, "Restarting": False},
    "Mounts": [],
    "Config": {"Tty": False},
    "HostConfig": {"NetworkMode": "bridge", "PidMode": "", "IpcMode": "private", "UTSMode": "", "Privileged": False},
}


def changed(**parts: Any) -> dict[str, Any]:
    return PLAIN | {key: PLAIN[key] | value if isinstance(value, dict) else value for key, value in parts.items()}


def test_a_plain_container_may_move() -> None:
    refuse_container(PLAIN, ("overlay2",))
    refuse_container(changed(Mounts=[{"Type": "volume"}, {"Type": "tmpfs"}]), ("overlay2",))
    refuse_container(
        changed(HostConfig={"NetworkMode": "none", "IpcMode": "shareable", "PidMode": "private"}), ["overlay2"]
    )


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (changed(State={"Running": False, "Status": "exited"}), "container web is exited: only a running one can move"),
        (changed(State={"Paused": True, "Status": "paused"}), "container web is paused"),
        (changed(Driver="zfs"), "storage driver zfs: use overlay2"),
        (changed(Mounts=[{"Type": "bind", "Source": "/srv", "Destination": "/data"}]), "has /srv of the host at /data"),
        (changed(Config={"Tty": True}), "container web has a terminal (-t)"),
        (changed(HostConfig={"Privileged": True}), "is privileged"),
        (changed(HostConfig={"Devices": [{"PathOnHost": "/dev/kvm"}]}), "has devices of the host"),
        (changed(HostConfig={"DeviceRequests": [{"Driver": "nvidia"}]}), "has devices of the host"),
        (changed(HostConfig={"DeviceCgroupRules": ["c 10:200 rwm"]}), "may open devices"),
        (changed(HostConfig={"VolumesFrom": ["db"]}), "uses the volumes of another container"),
        (changed(HostConfig={"UsernsMode": "host"}), "has a user namespace setting"),
        (changed(HostConfig={"PidMode": "host"}), "run it without --pid=host"),
        (
            changed(HostConfig={"IpcMode": "container:0123456789abcdef"}),
            "shares a namespace with container 0123456789ab:",
        ),
        (changed(HostConfig={"NetworkMode": "container:db"}), "run it without --network=container:db"),
        (changed(HostConfig={"UTSMode": "host"}), "run it without --uts=host"),
    ],
)
def test_what_cannot_move_is_told_in_dockers_words(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refusal:
        refuse_container(facts, ("overlay2",))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_hostile_description_is_refused_at_the_destination() -> None:
    with pytest.raises(Refused, match="privileged"):
        refuse_settings({}, {"Privileged": True})


def test_only_the_network_is_another_one() -> None:
    host = {
        "Memory": 1 << 20, "RestartPolicy": {"Name": "always"}, "NetworkMode": "bridge", "Links": ["db"],
        "PortBindings": {"80/tcp": [{"HostPort": "80"}]}, "PublishAllPorts": True, "CapAdd": ["NET_ADMIN"],
    }  # fmt: skip
    there = settings_there(host)
    assert {key: there[key] for key in ("Memory", "RestartPolicy", "CapAdd")} == {
        key: host[key] for key in ("Memory", "RestartPolicy", "CapAdd")
    }
    assert (there["NetworkMode"], there["PortBindings"], there["PublishAllPorts"], there["Links"]) == (
        "none",
        {},
        False,
        None,
    )
