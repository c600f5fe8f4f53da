"""The container's description (OCI runtime spec) as a pure function of service, image and paths.

Both ends of a migration build it, so nothing in it may depend on the host. Every mount costs time inside
CRIU's freeze, so there are only those a usual Linux program needs. A bind mount costs some 10 us; a tmpfs
costs 4 ms at the dump and again at the restore, because CRIU starts `tar` for its contents. Therefore /dev is
a folder of the writable layer (see `whimbrel.storage.devices`) and /dev/shm a tmpfs of the agent's, bound in
and declared external to CRIU as `SHM_EXTERNAL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.service import ServiceSpec

CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]

# Writable for uid 0 by file mode alone (no capability is asked for): core_pattern and the like, SysRq,
# interrupt routing, PCI configuration. Each costs one bind mount.
READONLY_PATHS = ["/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = 16384  # hosts without CAP_SYS_RESOURCE may not go above their own hard limit (20,000 seen)

SHM_MOUNT = "/dev/shm"
SHM_EXTERNAL = "whimbrel-shm"  # dump: --external mnt[/dev/shm]:KEY, restore: --external mnt[KEY]:<the agent's tmpfs>

_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    {
        "destination": "/dev/mqueue",
        "type": "mqueue",
        "source": "mqueue",
        "options": ["nosuid", "noexec", "nodev"],
    },
    {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"],
    },
]


class ImageConfig(Protocol):
    """What of an image decides how a process starts (see `whimbrel.storage.images.Image`)."""

    @property
    def entrypoint(self) -> tuple[str, ...]: ...
    @property
    def argv(self) -> tuple[str, ...]: ...
    @property
    def env(self) -> tuple[str, ...]: ...
    @property
    def cwd(self) -> str: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def groups(self) -> tuple[int, ...]: ...


def argv_of(service: ServiceSpec, image: ImageConfig) -> list[str]:
    """`service.args` replace the image's command, not its entry point. Raises BadInput if none is left."""
    argv = [*image.entrypoint, *service.args] if service.args else list(image.argv)
    if not argv:
        raise BadInput(f"image {service.image} names no command to run: give one after the service's name")
    return argv


def merged_env(service: ServiceSpec, image: ImageConfig) -> list[str]:
    """Image first, service over it, ``PATH`` always there. Raises BadInput for a setting without ``=``."""
    merged: dict[str, str] = {}
    for setting in (DEFAULT_PATH, *image.env, *service.env):
        key, separator, value = setting.partition("=")
        if not key or not separator or "\0" in setting:
            raise BadInput(f"environment setting {setting!r} is not valid: write NAME=VALUE")
        merged[key] = value
    return [f"{key}={value}" for key, value in merged.items()]


def cgroup_path(node: str, service: str) -> str:
    """Path of a service's control group below each hierarchy's mount point."""
    return f"/whimbrel/{node}/{service}"


def volume_external(name: str) -> str:
    """CRIU's key of a volume: a mount of ours, as /dev/shm is."""
    return f"whimbrel-volume-{name}"


def local_external(name: str) -> str:
    """The same of a top-level folder that is the node's own, because the root itself is on shared storage. It is
    mounted below the root before runc sees it: told to mount /dev itself, runc would leave it empty."""
    return f"whimbrel-local-{name}"


def build_spec(
    service: ServiceSpec,
    image: ImageConfig,
    *,
    rootfs: Path,
    shm: Path,
    netns: Path,
    cgroup: str,
    volumes: Mapping[str, Path] | None = None,
) -> bytes:
    """config.json of an OCI bundle. `rootfs`, `shm` (a tmpfs for /dev/shm) and `netns` are absolute paths; `volumes`
    are folders by the path where the container sees them.

    Raises BadInput (see above).
    """
    shared_memory = {
        "destination": SHM_MOUNT,
        "type": "bind",
        "source": str(shm),
        "options": ["bind", "nosuid", "noexec", "nodev"],
    }
    bound = [
        {"destination": path, "type": "bind", "source": str(folder), "options": ["bind", "nodev"]}
        for path, folder in (volumes or {}).items()
    ]
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if service.memory_limit_bytes:
        limit = service.memory_limit_bytes
        resources["memory"] = {"limit": limit, "swap": limit}
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": image.uid, "gid": image.gid, "additionalGids": list(image.groups)},
            "args": argv_of(service, image),
            "env": merged_env(service, image),
            "cwd": image.cwd or "/",
            "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": OPEN_FILES}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": False},
        "hostname": service.name,
        "mounts": [*_MOUNTS, shared_memory, *bound],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": resources,
            "namespaces": [
                {"type": "pid"},
                {"type": "network", "path": str(netns)},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
            ],
            "maskedPaths": [],
            "readonlyPaths": READONLY_PATHS,
        },
    }
    return msgspec.json.format(msgspec.json.encode(spec, order="deterministic"), indent=2)
