"""Packages as files: Debian's by apt and dpkg-deb, Python's by pip, each from whatever source this machine is set
to. Nothing is installed on the machine."""

from __future__ import annotations

import platform
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from whimbrel.model.errors import BadInput, Refused
from whimbrel.workloads.commands import run

LOCK = Path(__file__).with_name("packages.lock")


def unpack_debian(packages: Sequence[str], tree: Path, work: Path) -> None:
    """Unpack packages and all that they depend on into a folder.

    An empty package database makes apt's own solver name exactly what an empty root folder needs.
    """
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    (work / "status").write_text("")
    download = [
        *("apt-get", "-qy", "--no-install-recommends", "--download-only"),
        *("-o", f"Dir::State::status={work / 'status'}", "-o", f"Dir::Cache::archives={archives}"),
        *("install", *packages),
    ]
    try:
        run(*download)
    except Refused:  # slim installations come without package lists, others have outdated ones
        run("apt-get", "-q", "update", "-o", "DPkg::Lock::Timeout=300")
        run(*download)
    for package in sorted(archives.glob("*.deb")):
        run("dpkg-deb", "-x", str(package), str(tree))


def install_python(names: Sequence[str], folder: Path, work: Path, *, for_python: str = "") -> None:
    """Unpack wheels into a folder: for a Python of version `for_python` (like ``3.11``) on this kind of machine, or
    for the Python that runs this."""
    machine = platform.machine()
    foreign: list[str] = []
    if for_python:
        kinds = [f"manylinux_2_{minor}_{machine}" for minor in (28, 27, 26, 24, 17)] + [f"manylinux2014_{machine}"]
        abis = (f"cp{for_python.replace('.', '')}", "abi3", "none")
        foreign = ["--python-version", for_python, "--implementation", "cp", *(f"--abi={abi}" for abi in abis)]
        foreign += [f"--platform={kind}" for kind in kinds]
    options = ["--only-binary=:all:", "--no-compile", "--target", str(folder), *foreign]
    _pip("install", *options, "-r", str(_pinned(names, work)))


def unpack_sources(names: Sequence[str], folder: Path, work: Path) -> None:
    """Unpack source archives, each into ``folder/NAME``. Nothing of them is run but pip's look at their metadata."""
    for name in names:
        archives = work / f"sdist-{name}"
        _pip("download", "--no-binary=:all:", "-d", str(archives), "-r", str(_pinned([name], work)))
        (found,) = archives.iterdir()
        with tarfile.open(found) as archive:
            archive.extractall(work / f"unpacked-{name}", filter="data")
        (inside,) = (work / f"unpacked-{name}").iterdir()
        folder.mkdir(parents=True, exist_ok=True)
        inside.rename(folder / name)


def pinned(name: str) -> str:
    """The lock's lines for one package: its version and the hashes of its files. Raises BadInput."""
    match = re.search(rf"^{re.escape(name)}==.*(?:\n[ \t]+--hash.*)*", LOCK.read_text(), re.M)
    if match is None:
        raise BadInput(f"{name} is not in {LOCK.name}: add it to packages.in and run `make lock`")
    return match[0]


def _pinned(names: Sequence[str], work: Path) -> Path:
    file = work / f"requirements-{'-'.join(names)[:80]}.txt"
    file.write_text("".join(f"{pinned(name)}\n" for name in names))
    return file


def _pip(command: str, *options: str) -> None:
    common = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--require-hashes")
    try:
        run(sys.executable, "-m", "pip", command, *common, *options)
    except Refused as error:
        if "No module named pip" in str(error):
            raise Refused(f"building an image needs pip for {sys.executable}: run scripts/setup") from None
        raise
