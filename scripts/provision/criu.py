"""CRIU: the machine's own where it is good enough, else a newer one of the same archive under a prefix."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from provision.archive import PrivateApt, release_sources
from provision.shell import SEARCH_PATH, CommandError, SetupError, Step, run

# CRIU 4.2 widened the header of its page-server protocol from 24 to 32 bytes. We speak that protocol
# ourselves during a move, nothing on the wire tells the two apart, so older versions are refused here.
MINIMUM = (4, 2)
# Later Debian suites, the most settled first. Each is tried until one has a new enough CRIU.
SUITES = ("trixie", "trixie-backports", "forky", "sid")
APT_DIR = Path("/etc/apt")


class UnfitError(Exception):
    """A CRIU is there but cannot be used; the message says why."""


def parse_version(text: str) -> tuple[int, int] | None:
    """Major and minor number out of `criu --version` or a package version."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def probe(command: Sequence[str]) -> str:
    """Version of a CRIU that works on this kernel; raises `UnfitError` otherwise."""
    try:
        version = run([*command, "--version"])
        if (parse_version(version) or (0, 0)) < MINIMUM:
            raise UnfitError(f"{version.split()[1]} is older than {MINIMUM[0]}.{MINIMUM[1]}")
        verdict = run([*command, "check"])
    except CommandError as error:
        raise UnfitError(error.tail or str(error)) from error
    if "Looks good" not in verdict:
        raise UnfitError(verdict.strip())
    return version.split()[1]


def loader_command(root: Path) -> list[str]:
    """Command line that starts the unpacked CRIU with the C library unpacked beside it."""
    binaries = [file for folder in ("usr/sbin", "sbin") for file in root.glob(f"{folder}/criu")]
    loaders = sorted(root.glob("usr/lib/*/ld-linux*.so.*")) or sorted(root.glob("lib/*/ld-linux*.so.*"))
    if not binaries or not loaders:
        raise UnfitError("the downloaded packages hold no criu program or no dynamic loader")
    # Debian has all libraries of an architecture in one folder; older packages put theirs into /lib.
    architecture = loaders[0].parent.name
    libraries = [str(root / folder / architecture) for folder in ("usr/lib", "lib")]
    return [str(loaders[0]), "--library-path", ":".join(libraries), str(binaries[0])]


def write_wrapper(wrapper: Path, command: Sequence[str]) -> None:
    """Put a program at `wrapper` that becomes the command: process ids and signals stay true."""
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    fresh = wrapper.with_suffix(".new")
    fresh.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    fresh.chmod(0o755)
    fresh.replace(wrapper)


def download(apt: PrivateApt, step: Step) -> tuple[str, list[Path]]:
    """Find the first suite with a new enough CRIU and fetch its packages; returns the suite and the files."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    sources = release_sources(APT_DIR, codename)
    if not sources:
        raise SetupError(
            f"no apt entry for the release {codename or '(unknown)'} with component main was found",
            "install CRIU >= 4.2 yourself and name it in WHIMBREL_CRIU",
        )
    reasons = []
    for suite in SUITES:
        for source in sources:
            step.doing(f"looking in {suite}")
            # Packages of a backports suite depend on packages of the suite below it.
            base = suite.removesuffix("-backports")
            try:
                apt.use(source, list(dict.fromkeys([base, suite])))
                version = apt.candidate("criu", suite)
                if (parse_version(version or "") or (0, 0)) < MINIMUM:
                    reasons.append(f"{suite} has {version or 'none'}")
                    continue
                step.doing(f"downloading {version} of {suite}")
                return suite, apt.download("criu", suite)
            except CommandError as error:
                reasons.append(f"{suite}: {error.tail}")
    raise SetupError(
        f"no suite of this machine's archive offers CRIU >= 4.2 ({'; '.join(reasons)})",
        "check the network (for a signature error: upgrade debian-archive-keyring), "
        "or install CRIU >= 4.2 and name it in WHIMBREL_CRIU",
    )


def _unpack(prefix: Path, step: Step) -> str:
    """Download and unpack a CRIU below the prefix and make its wrapper; returns the suite it came from."""
    prefix.mkdir(parents=True, exist_ok=True)
    final = prefix / "criu"
    with tempfile.TemporaryDirectory(prefix="criu-", dir=prefix) as scratch:
        Path(scratch).chmod(0o755)  # apt downloads as a user of its own, who has to reach the folder
        suite, packages = download(PrivateApt(Path(scratch) / "apt"), step)
        step.doing(f"unpacking {len(packages)} packages")
        root = Path(scratch) / "root"
        for package in packages:
            run(["dpkg-deb", "-x", str(package), str(root)])
        probe(loader_command(root))  # before the swap: a failure must not cost a working CRIU
        shutil.rmtree(final, ignore_errors=True)
        root.rename(final)
    write_wrapper(prefix / "bin" / "criu", loader_command(final))
    return suite


def ensure(step: Step, prefix: Path) -> None:
    """Make sure that a usable CRIU can be found: WHIMBREL_CRIU, the prefix's, the machine's, or a new one."""
    wrapper = prefix / "bin" / "criu"
    chosen = os.environ.get("WHIMBREL_CRIU")
    on_path = shutil.which("criu", path=SEARCH_PATH)
    unfit = []
    for named in [chosen] if chosen else [str(wrapper), on_path]:
        place = shutil.which(named, path=SEARCH_PATH) if named else None
        if place is None:
            continue
        try:
            step.outcome = f"CRIU {probe([place])} at {place}, `criu check` passes"
        except UnfitError as error:
            unfit.append(f"{place}: {error}")
        else:
            if place != str(wrapper):
                wrapper.unlink(missing_ok=True)  # it is looked for before PATH, and is unfit or absent here
            return
    if chosen:
        raise SetupError(
            f"WHIMBREL_CRIU names an unusable CRIU ({'; '.join(unfit) or f'{chosen} does not exist'})",
            "unset it to let setup fetch one",
        )
    try:
        suite = _unpack(prefix, step)
        step.outcome = f"CRIU {probe([str(wrapper)])} of {suite} unpacked under {prefix}, `criu check` passes"
    except UnfitError as error:
        raise SetupError(
            f"CRIU does not work on this kernel ({error})",
            "run as full root outside of chroots and containers, on a kernel with CHECKPOINT_RESTORE",
        ) from error
