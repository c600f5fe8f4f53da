"""The project's Python environment, from a lock file in which every file is pinned by its hash."""

from __future__ import annotations

import compileall
import hashlib
import os
import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from provision.shell import CommandError, SetupError, Step, run

STAMP = ".setup-stamp"
# What the example images take from PyPI: pinned apart, because it is for the images' Python and not for ours.
IMAGE_PACKAGES = "src/whimbrel/workloads/packages"


def uv_settings(python: Path) -> dict[str, str]:
    """What pip is set to on this machine, for uv, which reads none of pip's settings."""
    try:
        listed = run([str(python), "-m", "pip", "config", "list"])
    except CommandError:
        listed = ""
    pip = dict(re.findall(r"^[^=]*\.([\w-]+)='(.*)'$", listed, re.M))
    wanted = {"UV_DEFAULT_INDEX": pip.get("index-url"), "SSL_CERT_FILE": pip.get("cert")}
    already = {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & os.environ.keys()
    return {
        name: value
        for name, value in wanted.items()
        if value and name not in os.environ and not (name.startswith("UV_") and already)
    }


def _environment_key(repo: Path) -> str:
    """Changes when the environment has to be made anew: another lock, project file, Python or folder."""
    key = hashlib.sha256(f"{sys.version} {repo}".encode())
    for name in ("requirements.lock", "pyproject.toml"):
        key.update((repo / name).read_bytes())
    return key.hexdigest()


def _make_venv(venv: Path) -> Path:
    """Create the virtual environment, afresh if the one there belongs to another Python."""
    python = venv / "bin" / "python"
    try:
        same = run([str(python), "-c", "import sys; print(sys.version)"]).strip() == sys.version
    except CommandError:
        same = False
    if not same:
        shutil.rmtree(venv, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(venv)])
    return python


def _install_uv(python: Path, pinned: str) -> Path:
    """Install uv with pip, in the locked version if there is a lock."""
    uv = python.with_name("uv")
    if not uv.exists():
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(pinned or "uv\n")
            file.flush()
            hashes = ["--require-hashes"] if pinned else []
            run([str(python), "-m", "pip", "install", "-q", "--no-deps", *hashes, "-r", file.name])
    return uv


def _uv_entry(lock: str) -> str:
    """The lines of the lock that pin uv itself."""
    match = re.search(r"^uv==.*(?:\n[ \t]+.*)*", lock, re.M)
    return f"{match[0]}\n" if match else ""


def _compile_ours(repo: Path) -> None:
    """Whatever has changed since the last time; a file that does not compile is for its reader to find."""
    compileall.compile_dir(repo / "src", quiet=2)


def ensure(step: Step, repo: Path) -> None:
    """Make `.venv` agree with `requirements.lock`; does nothing when it already does."""
    venv, lock = repo / ".venv", repo / "requirements.lock"
    if not lock.exists():
        raise SetupError("requirements.lock is missing", "restore it from git, or run `make lock`")
    key = _environment_key(repo)
    stamp = venv / STAMP
    if stamp.exists() and stamp.read_text() == key and (venv / "bin" / "python").exists():
        _compile_ours(repo)
        step.outcome = "environment agrees with requirements.lock"
        return
    try:
        stamp.unlink(missing_ok=True)
        step.doing("creating the environment")
        python = _make_venv(venv)
        uv = _install_uv(python, _uv_entry(lock.read_text()))
        env = uv_settings(python)
        pip = [str(uv), "pip"]
        step.doing("installing the locked packages")
        # Compiled now: each migration starts a Python, maybe on a machine that may not keep what it compiles.
        sync = ["sync", "-q", "--compile-bytecode", "--python", str(python)]
        run([*pip, *sync, "--require-hashes", str(lock)], env=env)
        # The build backend is in the lock too, so no unpinned code is fetched to build the project.
        project = ["--no-deps", "--no-build-isolation", "-e", str(repo)]
        run([*pip, "install", "-q", "--python", str(python), *project], env=env)
    except CommandError as error:
        raise SetupError(str(error), "check the network and pip's settings, then run it again") from error
    try:
        run([*pip, "check", "--python", str(python)])
    except CommandError as error:
        raise SetupError(f"requirements.lock is behind pyproject.toml ({error.tail})", "run `make lock`") from error
    _compile_ours(repo)
    stamp.write_text(key)
    step.outcome = f"{lock.read_text().count('==')} locked packages installed in {venv.name}"


def make_lock(step: Step, repo: Path, *, upgrade: bool) -> None:
    """Resolve the dependencies of pyproject.toml, and the packages of the example images, anew; keeps the versions
    in the locks unless upgrading."""
    lock, image_lock = repo / "requirements.lock", repo / f"{IMAGE_PACKAGES}.lock"
    project = tomllib.loads((repo / "pyproject.toml").read_text())
    # What builds and installs the project is locked with the rest: its build backend, what that needs
    # for an editable install, and uv.
    toolchain = [*project["build-system"]["requires"], "editables", "uv"]
    try:
        python = _make_venv(repo / ".venv")
        uv = _install_uv(python, "")
        step.doing("resolving")
        arguments = ["--universal", "--generate-hashes", "--no-header", "--no-emit-index-url", "--extra=dev"]
        arguments += ["--upgrade"] if upgrade else []
        run(
            [str(uv), "pip", "compile", "-q", *arguments, "-o", str(lock), str(repo / "pyproject.toml"), "-"],
            env=uv_settings(python),
            stdin="\n".join(toolchain),
        )
        step.doing("resolving the images' packages")
        arguments = [argument for argument in arguments if not argument.startswith("--extra")] + ["--no-deps"]
        run(
            [str(uv), "pip", "compile", "-q", *arguments, "-o", str(image_lock), str(repo / f"{IMAGE_PACKAGES}.in")],
            env=uv_settings(python),
        )
    except CommandError as error:
        raise SetupError(str(error), "check pyproject.toml and the network") from error
    for written in (lock, image_lock):
        if "://" in written.read_text():
            raise SetupError(f"{written.name} holds an address of a package index", "take the entry out")
    step.outcome = f"{lock.read_text().count('==')} packages in requirements.lock"
