"""A Docker daemon of its own for each node of the lab, with the demo's image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.migrate.conftest import Lab
from whimbrel.lab import commands
from whimbrel.network import netns
from whimbrel.workloads.catalogue import build_workload

IMAGE = "demo:latest"
CACHE = Path("/var/cache/whimbrel/engines")
WRAPPER = Path(sys.executable).with_name("whimbrel-runtime")


def missing() -> str:
    """Why Docker cannot be tested here, "" when it can."""
    lacking = [name for name in ("dockerd", "containerd", "docker", "skopeo") if shutil.which(name) is None]
    return f"{', '.join(lacking)} missing: run scripts/setup --engines" if lacking else ""


def archive() -> Path:
    """The demo's image as `docker load` wants it; made once for each version of the image."""
    image = build_workload("demo")
    CACHE.mkdir(parents=True, exist_ok=True)
    made, key = CACHE / "demo.docker.tar", image.layout.with_suffix(".key").read_text()
    note = made.with_suffix(".key")
    if not made.exists() or not note.exists() or note.read_text() != key:
        made.unlink(missing_ok=True)
        copy = ["skopeo", "copy", "--quiet", "--insecure-policy", image.reference, f"docker-archive:{made}:{IMAGE}"]
        subprocess.run(copy, check=True)
        note.write_text(key)
    return made


class DockerNode:
    """One daemon. It runs in the node's network namespace, with its own folders. `network`: its bridge's address."""

    def __init__(self, lab: Lab, node: str, driver: str, network: str = "") -> None:
        self.node, self.driver = node, driver
        self._bridge = ["--bip", network] if network else ["--bridge", "none"]
        self.folder = lab.state_dir(node) / "engines"
        self.socket = self.folder / "docker.sock"
        self.folder.mkdir(exist_ok=True)
        self._namespace = commands.node_namespace(node, lab_dir=lab.directory)
        self.start()

    def start(self) -> None:
        with (self.folder / "docker.log").open("ab") as log:
            self.process = netns.call(
                self._namespace,
                lambda: subprocess.Popen(
                    ["dockerd", "--host", f"unix://{self.socket}", "--data-root", self.folder / "data",
                     "--exec-root", self.folder / "exec", "--pidfile", self.folder / "docker.pid",
                     *self._bridge, "--iptables=false", "--ip6tables=false", "--storage-driver", self.driver,
                     "--add-runtime", f"whimbrel={WRAPPER}"],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                ),
            )  # fmt: skip

    def log(self) -> str:
        return (self.folder / "docker.log").read_text()[-3000:]

    def wait_up(self) -> None:
        deadline = time.monotonic() + 60
        while subprocess.run(self._argv("version"), capture_output=True, check=False).returncode:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, "dockerd does not answer"
            time.sleep(0.1)

    def load(self, image: Path) -> None:
        self.wait_up()
        self("load", "--quiet", "--input", str(image))

    def _argv(self, *arguments: str) -> list[str]:
        return ["docker", "--host", f"unix://{self.socket}", *arguments]

    def __call__(self, *arguments: str) -> str:
        """Run a command of docker's."""
        done = subprocess.run(self._argv(*arguments), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}\n{self.log()}"
        return done.stdout.strip()

    def names(self, *, all_of_them: bool = True) -> list[str]:
        return self("ps", *(["--all"] if all_of_them else []), "--format", "{{.Names}}").split()

    def inspect(self, container: str, what: str) -> str:
        return self("inspect", "--format", what, container)

    def stop(self) -> None:
        if self.process.poll() is None:
            for name in self.names():
                self("rm", "--force", "--volumes", name)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
