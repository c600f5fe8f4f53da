"""Which of Docker's containers can move, and as what they are made again: pure functions of Docker's own settings
(`docker inspect`), told in its own options."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from whimbrel.model.errors import Refused


def refuse_container(facts: dict[str, Any], drivers: Collection[str]) -> None:
    """A container, as its engine describes it, that could never move."""
    name, state = facts["Name"].lstrip("/"), facts["State"]
    if not state["Running"] or state["Paused"] or state["Restarting"]:
        raise Refused(f"container {name} is {state['Status']}: only a running one can move")
    if facts["Driver"] not in drivers:
        raise Refused(
            f"the files of {name} are kept by the storage driver {facts['Driver']}: use {' or '.join(drivers)}"
        )
    for mount in facts["Mounts"]:
        if mount["Type"] not in ("volume", "tmpfs"):
            raise Refused(
                f"container {name} has {mount['Source']} of the host at {mount['Destination']}, which stays behind: "
                "use a volume, or put the files into the image"
            )
    try:
        refuse_settings(facts["Config"], facts["HostConfig"])
    except Refused as error:
        raise Refused(f"container {name} {error}") from error


def refuse_settings(config: dict[str, Any], host: dict[str, Any]) -> None:
    """What a container may not have, to leave one node and to be let into another."""
    for found, reason in (
        (config.get("Tty"), "has a terminal (-t): run it without"),
        (host.get("Privileged"), "is privileged: run it without --privileged"),
        (host.get("Devices") or host.get("DeviceRequests"), "has devices of the host: run it without --device"),
        (host.get("DeviceCgroupRules"), "may open devices of the host: run it without --device-cgroup-rule"),
        (host.get("VolumesFrom"), "uses the volumes of another container: give it its own"),
        (host.get("UsernsMode"), "has a user namespace setting: run it without --userns"),
    ):
        if found:
            raise Refused(reason)
    for setting, option in (("PidMode", "pid"), ("IpcMode", "ipc"), ("UTSMode", "uts"), ("NetworkMode", "network")):
        mode = str(host.get(setting) or "")
        if mode == "host" or mode.startswith("container:"):
            whose = "the host" if mode == "host" else f"container {mode.partition(':')[2][:12]}"
            raise Refused(f"shares a namespace with {whose}: run it without --{option}={mode}")


def settings_there(host: dict[str, Any]) -> dict[str, Any]:
    """The host's side of a container's settings, for the next host: all but its network, which is the overlay's."""
    return {
        **host,
        "NetworkMode": "none",
        "PortBindings": {},
        "PublishAllPorts": False,
        "Links": None,
        "ContainerIDFile": "",
    }
