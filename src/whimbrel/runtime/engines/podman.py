"""Containers of Podman, by way of its API service (`podman system service`), which speaks Docker's language.

Podman has no daemon that could be told a runtime for one container: the service's own runtime must be our wrapper
(``runtime = "/…/whimbrel-runtime"`` in containers.conf, or ``podman --runtime … system service``).
"""

from __future__ import annotations

import contextlib
from typing import Any

from whimbrel.model.errors import Refused
from whimbrel.runtime.engines.docker import Docker
from whimbrel.runtime.engines.docker_rules import settings_there


class Podman(Docker):
    """The service behind one socket. conmon takes the part of Docker's shim."""

    title = "Podman"
    setting = "podman_socket"
    texts = (*Docker.texts, "/run/.containerenv")
    provided = ("/run/podman-init", "/dev/init")
    drivers = ("overlay",)

    def refuse(self, facts: dict[str, Any]) -> None:
        super().refuse(facts)
        policy = facts["HostConfig"]["RestartPolicy"]["Name"]
        if policy not in ("", "no"):
            raise Refused(
                f"container {facts['Name'].lstrip('/')} has the restart policy {policy!r}, which Podman cannot be told "
                "to forget: it would start the container again where it has left. Run it without --restart"
            )

    def host_settings(self, host: dict[str, Any]) -> dict[str, Any]:
        # its answer names limits otherwise than its question
        limits = [
            {**limit, "Name": str(limit["Name"]).removeprefix("RLIMIT_").lower()} for limit in host.get("Ulimits") or ()
        ]
        return {**settings_there(host), "Ulimits": limits}

    async def delete(self, container: str) -> None:
        with contextlib.suppress(Refused):  # it does not run; else the deletion would wait for it to stop by itself
            await self.api.call("POST", f"/containers/{container}/kill", {"signal": "KILL"})
        await super().delete(container)

    def refuse_daemon(self, info: dict[str, Any]) -> None:
        """It does not say which runtime it uses; a start without the wrapper is refused before anything stops."""
