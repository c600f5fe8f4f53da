"""Programs that Whimbrel calls, installed from the distribution where they are missing."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
from pathlib import Path

from provision.shell import SEARCH_PATH, CommandError, SetupError, Step, run

# We look for the commands, not for the packages: a runc that came with another engine will do, and
# installing Debian's beside it would even remove that engine (their packages conflict). `ping` is for people in a lab,
# and for the tests.
PACKAGE_OF_COMMAND = {
    "cc": "gcc",
    "dpkg-deb": "dpkg",
    "ip": "iproute2",
    "iptables": "iptables",
    "make": "make",
    "nft": "nftables",
    "ping": "iputils-ping",
    "rsync": "rsync",
    "runc": "runc",
    "skopeo": "skopeo",
    "sshfs": "sshfs",
    "tar": "tar",
    "umoci": "umoci",
}
# Other engines, whose containers may be services too, the solver of a paper, and the browser in which the pages are
# tested. Nobody needs them who has none; their tests do.
ENGINE_PACKAGE_OF_COMMAND = {
    "cbc": "coinor-cbc",
    "chromium": "chromium",
    "conmon": "conmon",
    "containerd": "containerd",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "lxc-checkpoint": "lxc",
    "mmdebstrap": "mmdebstrap",
    "podman": "podman",
}
# No PATH leads to this one; the lab's storage server runs it. (openssh-server, and with it a daemon, is not needed.)
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
C_HEADERS = ("/usr/include/stdio.h", "/usr/include/linux/userfaultfd.h")  # Debian's gcc only recommends them
BROWSER_FONTS = "/usr/share/fonts/**/Inter*"  # the same on every machine, so that pictures of pages look the same
POSTGRESQL_PROGRAMS = "/usr/lib/postgresql/*/bin/initdb"  # not on PATH either; the tests of the controller start one
NO_CLUSTER = Path("/etc/postgresql-common/createcluster.conf")
LOCK_WAIT_S = 300


def _wanted(engines: bool) -> dict[str, str]:
    return PACKAGE_OF_COMMAND | (ENGINE_PACKAGE_OF_COMMAND if engines else {})


def missing_packages(*, engines: bool = False) -> list[str]:
    """Names of the packages that have to be installed, each once."""
    missing = list(
        dict.fromkeys(
            package for command, package in _wanted(engines).items() if shutil.which(command, path=SEARCH_PATH) is None
        )
    )
    if not any(os.access(path, os.X_OK) for path in SFTP_SERVERS):
        missing.append("openssh-sftp-server")
    if not all(map(os.path.exists, C_HEADERS)):
        missing.append("libc6-dev")
    if engines and not glob.glob(POSTGRESQL_PROGRAMS):
        missing.append("postgresql")
    if engines and not glob.glob(BROWSER_FONTS, recursive=True):
        missing.append("fonts-inter")
    # Debian splits the part of `venv` that puts pip into the environment off into a package of its own.
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    return missing


def ensure(step: Step, *, engines: bool) -> None:
    """Install what is missing, with `engines` the other container engines too; touches neither the network nor apt's
    lists when nothing is."""
    packages = missing_packages(engines=engines)
    if not packages:
        step.outcome = f"all {len(_wanted(engines)) + 2} tools are here"
        return
    if shutil.which("apt-get", path=SEARCH_PATH) is None:
        raise SetupError(f"missing: {', '.join(packages)}, and no apt-get to install them", "install them by hand")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    lock_wait = f"DPkg::Lock::Timeout={LOCK_WAIT_S}"
    try:
        step.doing("apt-get update")
        run(["apt-get", "update", "-q", "-o", lock_wait], env=env)
        step.doing(f"installing {' '.join(packages)}")
        if "postgresql" in packages and not NO_CLUSTER.exists():  # the programs, and no server that starts by itself
            NO_CLUSTER.parent.mkdir(exist_ok=True)
            NO_CLUSTER.write_text("create_main_cluster = false\n")
        run(["apt-get", "install", "-qy", "--no-install-recommends", "-o", lock_wait, *packages], env=env)
    except CommandError as error:
        raise SetupError(str(error), f"repair apt, or run `apt-get install {' '.join(packages)}`") from error
    still = missing_packages(engines=engines)
    if still:
        raise SetupError(
            f"still missing after the installation: {', '.join(still)}",
            "put them on PATH; a Python that lacks ensurepip needs its own venv package",
        )
    step.outcome = f"installed {' '.join(packages)}"
