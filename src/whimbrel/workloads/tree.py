"""A container's root folder while it is made: what is kept of unpacked packages, and what makes it the same
whenever and wherever it is made."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from whimbrel.model.errors import Refused
from whimbrel.workloads.commands import run, run_inside

# One time for every file: the digest of a layer then depends on what is in it, not on when it was made.
EPOCH_S = 946_684_800
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
FOLDERS = ("dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin",
           "var/tmp")  # fmt: skip
MERGED = ("bin", "lib", "lib64", "sbin")
# What no container reads: documentation, translations, what packages keep for the package manager.
NEVER = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian",
         "usr/share/bug", "usr/share/doc-base", "var/cache", "var/lib/dpkg")  # fmt: skip


def make_skeleton(root: Path) -> None:
    """An empty root folder with what every program expects."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for name in MERGED:
        (root / name).symlink_to(f"usr/{name}")
    for name, text in FILES.items():
        (root / name).write_text(text)


def merge_usr(tree: Path) -> None:
    """Give an unpacked tree Debian's layout of today, in which /bin, /lib and so on are links into /usr."""
    for name in MERGED:
        inside = tree / "usr" / name
        if (tree / name).is_dir() and not (tree / name).is_symlink():
            shutil.copytree(tree / name, inside, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(tree / name)
        inside.mkdir(parents=True, exist_ok=True)
        if not (tree / name).is_symlink():
            (tree / name).symlink_to(f"usr/{name}")


def take(tree: Path, root: Path, keep: Sequence[str], needless: Sequence[str]) -> None:
    """Copy the paths that match `keep` (globs; none: everything) without `needless` names into `root`, and with
    them the libraries that they load. Raises Refused for a `keep` that matches nothing."""
    wanted: set[Path] = set()
    for pattern in keep or ("*",):
        found = sorted(tree.glob(pattern))
        if not found:
            raise Refused(f"building an image: the packages have nothing at {pattern!r}, which keep asks for")
        wanted.update(found)
    files = sorted({file for path in wanted for file in _files(path, needless, tree)})
    # a link is of no use without what it leads to
    files = sorted({*files, *(target for file in files if file.is_symlink() and (target := _target(file, tree)))})
    for file in files:
        _copy(tree, file, root)
    programs = [file for file in files if not file.is_symlink() and is_elf(file)]
    loaders = sorted([*tree.glob("usr/lib/*/ld-linux*"), *tree.glob("usr/lib/ld-linux*")])
    if programs and loaders:
        for library in _needed_libraries(tree, loaders[0], programs):
            _copy(tree, library, root, follow=True)
        # Programs name the loader by a path of its own, which differs between architectures.
        for path in [*loaders, *tree.glob("usr/lib64/ld-linux*")]:
            _copy(tree, path, root)


def _files(path: Path, needless: Sequence[str], tree: Path) -> Iterable[Path]:
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in needless):
        return
    if str(path.relative_to(tree)) in NEVER:
        return
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            yield from _files(entry, needless, tree)
    elif path.is_symlink() and not _leads_inside(path, tree):
        return
    elif path.is_symlink() or path.is_file():
        yield path


def _target(link: Path, tree: Path) -> Path | None:
    """The file that a link leads to in the end; None when that is a folder."""
    end = link.resolve()
    return tree / end.relative_to(tree.resolve()) if end.is_file() and end.is_relative_to(tree.resolve()) else None


def _leads_inside(link: Path, tree: Path) -> bool:
    """Does a link lead to something in the tree, as the container will see it?"""
    target = os.readlink(link)
    if target.startswith("/"):
        return os.path.lexists(tree / target.lstrip("/"))
    return link.exists() and link.resolve().is_relative_to(tree.resolve())


def _copy(tree: Path, path: Path, root: Path, *, follow: bool = False) -> None:
    """Copy one file to the same place in another tree; the content if it is a link and `follow`."""
    copy = root / path.relative_to(tree)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(copy):
        shutil.copy2(path, copy, follow_symlinks=follow)


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _needed_libraries(tree: Path, loader: Path, programs: Sequence[Path]) -> set[Path]:
    """Paths of the shared libraries that the programs load, as the tree's own loader finds them."""
    needed = set()
    for program in programs:
        inside = [f"/{path.relative_to(tree)}" for path in (loader, program)]
        try:
            listed = run("chroot", str(tree), inside[0], "--list", inside[1])
        except Refused:
            continue  # a program that is linked statically loads nothing
        for line in listed.splitlines():
            _, arrow, found = line.partition(" => /")
            if arrow:
                # /lib is a link to /usr/lib by now; the file itself may be a link to a longer name.
                path = tree / found.split()[0]
                needed.add(path.parent.resolve() / path.name)
    return needed


def prune(folder: Path, needless: Sequence[str]) -> None:
    """Remove everything with such a name, at any depth."""
    for pattern in needless:
        for path in sorted(folder.rglob(pattern), reverse=True):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def normalise(root: Path) -> None:
    """Same times and permissions whenever and under whichever umask the tree was made."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (EPOCH_S, EPOCH_S), follow_symlinks=False)
    for name in ("tmp", "var/tmp"):
        if (root / name).is_dir():
            (root / name).chmod(0o1777)


def import_in(root: Path, modules: str) -> None:
    """Import modules with the tree's own Python. It proves that the tree is whole, and leaves the modules compiled,
    which halves the start-up time. A compiled file holds its source's time (normalise first) and, in sets, an order
    that follows the hash seed."""
    wanted = " ".join(modules.split())
    settings = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    run_inside(root, "/usr/bin/python3", "-c", f"import {wanted}", env=settings)


def link_copy(source: Path, target: Path) -> None:
    """A copy whose files are the same files: for trees of which nothing is ever written to in place."""
    shutil.copytree(source, target, symlinks=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def difference(before: Path, after: Path, out: Path) -> None:
    """Put what is in `after` and not, or not the same, in `before` into a new folder `out`: the content of a layer.

    Folders come along only as parents. Nothing is ever removed by a layer.
    """
    out.mkdir()
    for directory, folders, files in os.walk(after):
        inside = Path(directory).relative_to(after)
        for name in sorted(files + [entry for entry in folders if Path(directory, entry).is_symlink()]):
            old, new = before / inside / name, after / inside / name
            if not _same(old, new):
                (out / inside).mkdir(parents=True, exist_ok=True)
                _link(str(new), str(out / inside / name))
        if not any(Path(directory).iterdir()) and not (before / inside).is_dir():
            (out / inside).mkdir(parents=True, exist_ok=True)


def _same(old: Path, new: Path) -> bool:
    if not os.path.lexists(old) or old.is_symlink() != new.is_symlink():
        return False
    if new.is_symlink():
        return os.readlink(old) == os.readlink(new)
    return os.path.samefile(old, new) or (old.stat().st_mode == new.stat().st_mode and digest_of(old) == digest_of(new))


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Progress = Callable[[str], object]
