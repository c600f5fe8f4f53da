"""What an image is made of: `recipe.toml` of a workload's folder, read and checked. No building here.

summary = "one line"                    what `whimbrel workload ls` shows
papers = ["fast"]                       whose workload it is
extends = "redis"                       another folder's recipe, of which this is a variant
base = ["python"]                       layers that images share, by their names in layers.toml
command = ["/usr/bin/python3", "/srv/service.py"]
env = { MEMORY_MB = "200" }             what the service is told; a run may say otherwise
workdir = "/srv"
ports = ["7000/tcp", "7000/udp"]        the first TCP port is the one that the client talks to
check = [["/usr/sbin/nginx", "-t"]]     commands that must succeed in the finished tree
options = { seconds = 442 }             for the `make` scripts, and for the client
client = { PRELOAD_MB = "200" }         for the client only

[[layer]]                               each layer one kind of content
what = "nginx of the distribution"
apt = ["nginx-light"]                   packages, of which only
keep = ["usr/sbin/nginx"]               these paths (globs) stay, and the libraries that they load
needless = ["*.pyc"]                    names (globs) that go

[[layer]]
what = "numpy"
pip = ["numpy"]                         pinned by hash in packages.lock
imports = "numpy"                       proves that it is whole, and leaves it compiled

[[layer]]
what = "the video"
make = "make_video.py"                  a script of the folder: see `whimbrel.workloads.layers`
tools = ["imageio-ffmpeg"]              pip packages that the script imports
sources = ["face-recognition"]          source archives that it reads, unpacked in sources/NAME

[[layer]]
what = "the service"
files = { "service.py" = "/srv/service.py" }
"""

from __future__ import annotations

import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.service import NAME_PATTERN

FILE = "recipe.toml"
SHARED_LAYERS = Path(__file__).with_name("layers.toml")
CONTENTS = ("apt", "pip", "make", "files")
MOST_VARIANTS = 8  # a longer chain of `extends` is a circle


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer; exactly one of `CONTENTS` is given. `folder` is where its files and scripts are."""

    what: str
    apt: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    needless: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    imports: str = ""
    make: str = ""
    tools: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    files: dict[str, str] = {}
    folder: Path = Path()


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A whole recipe: shared layers and what it extends are filled in. `settings` is what its client is told
    unless a run says otherwise."""

    name: str
    folder: Path
    client_file: Path
    summary: str
    layers: tuple[Layer, ...]
    command: tuple[str, ...]
    ports: tuple[str, ...]
    papers: tuple[str, ...] = ()
    env: dict[str, str] = {}
    workdir: str = "/"
    check: tuple[tuple[str, ...], ...] = ()
    options: dict[str, int | float | str] = {}
    client: dict[str, str] = {}

    @property
    def port(self) -> int:
        """The TCP port that the client talks to."""
        return next(int(port.split("/")[0]) for port in self.ports if port.endswith("/tcp"))

    @property
    def udp(self) -> bool:
        return f"{self.port}/udp" in self.ports

    @property
    def settings(self) -> dict[str, str]:
        return {**{name: str(value) for name, value in self.options.items()}, **self.client, **self.env}


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """recipe.toml as it is written."""

    summary: str
    papers: tuple[str, ...] = ()
    extends: str = ""
    base: tuple[str, ...] = ()
    layer: tuple[Layer, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    workdir: str = ""
    ports: tuple[str, ...] = ()
    check: tuple[tuple[str, ...], ...] = ()
    options: dict[str, int | float | str] = {}
    client: dict[str, str] = {}


def load_recipe(folder: Path, catalogue: Path | None = None) -> Recipe:
    """Read a folder's recipe; `extends` names a folder of the catalogue (default: beside the folder).

    Raises BadInput: one line with the file, the mistake and, where there is one, the way out.
    """
    return _finish(_load(folder.resolve(), catalogue or folder.resolve().parent, 0))


def _load(folder: Path, catalogue: Path, depth: int) -> Recipe:
    path = folder / FILE
    if not NAME_PATTERN.fullmatch(folder.name):
        raise BadInput(f"{folder} cannot be a workload: name the folder with a-z, 0-9 and '-'")
    file = _decode(path, _File)
    layers = [*_shared(file.base, path), *(_checked(layer, folder, path) for layer in file.layer)]
    client_file = folder / "client.py"
    if not file.extends:
        return Recipe(
            name=folder.name,
            folder=folder,
            client_file=client_file,
            summary=file.summary,
            papers=file.papers,
            layers=tuple(layers),
            command=file.command,
            env=file.env,
            workdir=file.workdir or "/",
            ports=file.ports,
            check=file.check,
            options=file.options,
            client=file.client,
        )
    if depth >= MOST_VARIANTS or file.extends == folder.name:
        raise BadInput(f"{path}: extends = {file.extends!r} leads round in a circle")
    if not (catalogue / file.extends / FILE).is_file():
        raise BadInput(f"{path}: extends = {file.extends!r}, but there is no {catalogue / file.extends / FILE}")
    of = _load(catalogue / file.extends, catalogue, depth + 1)
    return msgspec.structs.replace(
        of,
        name=folder.name,
        folder=folder,
        client_file=client_file if client_file.is_file() else of.client_file,
        summary=file.summary,
        papers=file.papers or of.papers,
        layers=(*of.layers, *layers),
        command=file.command or of.command,
        env={**of.env, **file.env},
        workdir=file.workdir or of.workdir,
        ports=file.ports or of.ports,
        check=(*of.check, *file.check),
        options={**of.options, **file.options},
        client={**of.client, **file.client},
    )


def _finish(recipe: Recipe) -> Recipe:
    """What only the whole shows to be wrong."""
    path = recipe.folder / FILE
    if not recipe.layers:
        raise BadInput(f"{path}: an image needs content: add a [[layer]], or name one in base")
    if not recipe.command:
        raise BadInput(f"{path}: command is missing: say what the container runs, like ['/srv/service']")
    for port in recipe.ports:
        number, _, protocol = port.partition("/")
        if protocol not in ("tcp", "udp") or not number.isdigit() or not 0 < int(number) < 65536:
            raise BadInput(f"{path}: port {port!r} is not valid: write N/tcp or N/udp")
    if not any(port.endswith("/tcp") for port in recipe.ports):
        raise BadInput(f"{path}: ports needs one like '7000/tcp', which the client talks to")
    if not recipe.client_file.is_file():
        raise BadInput(f"{path}: {recipe.client_file} is missing: a workload brings the client that verifies it")
    for name in recipe.env:
        if not name or "=" in name:
            raise BadInput(f"{path}: env has the name {name!r}, which no environment can hold")
    return recipe


def _decode(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), kind)
    except FileNotFoundError:
        raise BadInput(f"there is no {path}: a workload is a folder with a {FILE}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from None


def _shared(names: tuple[str, ...], path: Path) -> list[Layer]:
    known = _decode(SHARED_LAYERS, dict[str, Layer])
    for name in names:
        if name not in known:
            raise BadInput(f"{path}: base has {name!r}, which is not in {SHARED_LAYERS.name}: {', '.join(known)}")
    return [_checked(known[name], SHARED_LAYERS.parent, SHARED_LAYERS) for name in names]


def _checked(layer: Layer, folder: Path, path: Path) -> Layer:
    where = f"{path}: layer {layer.what!r}"
    given = [kind for kind in CONTENTS if getattr(layer, kind)]
    if len(given) != 1:
        found = " and ".join(given) if given else "nothing"
        raise BadInput(f"{where} has {found}: give it exactly one of {', '.join(CONTENTS)}")
    for field, of in (("keep", ("apt",)), ("needless", ("apt", "pip")), ("imports", ("apt", "pip")),
                      ("tools", ("make",)), ("sources", ("make",))):  # fmt: skip
        if getattr(layer, field) and given[0] not in of:
            raise BadInput(f"{where}: {field} goes with {' or '.join(of)}, not with {given[0]}")
    for file, target in {**layer.files, **({layer.make: "/"} if layer.make else {})}.items():
        if not _inside(file) or not (folder / file).is_file():
            raise BadInput(f"{where}: there is no file {file!r} in {folder}")
        if not target.startswith("/") or ".." in PurePosixPath(target).parts:
            raise BadInput(f"{where}: {target!r} is not an absolute path in the image")
    for pattern in layer.keep:
        if not _inside(pattern):
            raise BadInput(f"{where}: keep has {pattern!r}: write a path from the root without its first '/'")
    return msgspec.structs.replace(layer, folder=folder)


def _inside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in PurePosixPath(path).parts
