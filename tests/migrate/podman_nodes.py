"""Podman with its API service for each node of the lab, and the demo's image."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.migrate.conftest import Lab
from tests.migrate.docker_nodes import WRAPPER
from whimbrel.lab import commands
from whimbrel.lab.cleanup import mounts_under
from whimbrel.network import netns
from whimbrel.storage.layer import unmount

# a host may forbid what podman would set by itself
LIMITS = ("--ulimit", "nofile=1024:16384", "--ulimit", "nproc=4096:8192")


def missing() -> str:
    """Why Podman cannot be tested here, "" when it can."""
    lacking = [name for name in ("podman", "conmon", "skopeo") if shutil.which(name) is None]
    return f"{', '.join(lacking)} missing: run scripts/setup --engines" if lacking else ""


class PodmanNode:
    """The containers of one node, with folders of their own, and the service that its agent asks."""

    def __init__(self, lab: Lab, node: str) -> None:
        self.folder = lab.state_dir(node) / "engines/podman"
        self.socket = lab.state_dir(node) / "engines/podman.sock"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = tempfile.mkdtemp(prefix="pod")  # podman takes no path longer than 50 characters here
        self._namespace = commands.node_namespace(node, lab_dir=lab.directory)
        with (self.folder / "service.log").open("ab") as log:
            self._service = netns.call(
                self._namespace,
                lambda: subprocess.Popen(
                    self._argv("system", "service", "--time", "0", f"unix://{self.socket}"),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                ),
            )  # fmt: skip

    def _argv(self, *arguments: str) -> list[str]:
        folders = ["--root", str(self.folder / "root"), "--runroot", f"{self._run}/run", "--tmpdir", f"{self._run}/tmp"]
        chosen = ["--runtime", str(WRAPPER), "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        return ["podman", *folders, *chosen, *arguments]

    def load(self, image: Path) -> None:
        self("load", "--quiet", "--input", str(image))
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            assert time.monotonic() < deadline, (self.folder / "service.log").read_text()
            time.sleep(0.05)

    def __call__(self, *arguments: str) -> str:
        """Run a command of podman's, in the node's namespace."""
        run = lambda: subprocess.run(  # noqa: E731
            self._argv(*arguments), capture_output=True, text=True, check=False, timeout=120
        )
        done = netns.call(self._namespace, run)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def names(self) -> list[str]:
        return self("ps", "--all", "--format", "{{.Names}}").split()

    def stop(self) -> None:
        for name in self.names():
            self("rm", "--force", "--time", "0", "--volumes", name)
        self._service.terminate()
        self._service.wait(30)
        for mount in reversed(mounts_under(Path(self._run))):
            unmount(mount)
        shutil.rmtree(self._run)
