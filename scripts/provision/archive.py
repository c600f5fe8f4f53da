"""A private apt: packages of another Debian suite, fetched without touching the machine's own apt state.

The archive's address and keys come from the machine's own source entries, of which only the suite is
changed, so mirrors, proxies and local archives keep working.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from provision.shell import run

# Names under which an entry can mean the release that the machine runs.
ALIASES = {"oldstable", "stable", "testing", "unstable", "sid"}
ONE_LINE = re.compile(r"^deb\s+(?P<options>\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$")


@dataclass(frozen=True)
class Source:
    """One entry of apt's configuration with `{suites}` in place of its suites."""

    template: str
    file_suffix: str


def _deb822_fields(stanza: str) -> dict[str, str]:
    """Fields of a stanza, the names in lower case, continuation lines kept as they are."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():
            fields[name] = f"{fields.get(name, '')}\n{line}"
        elif ":" in line:
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _parse_deb822(text: str, suites: set[str]) -> list[Source]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = _deb822_fields(stanza)
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "off", "0"}
        of_release = suites & set(fields.get("suites", "").split())
        if enabled and of_release and "main" in fields.get("components", "").split():
            # Everything else is kept word for word: the URIs, Signed-By (a path or a whole key), options.
            kept = fields | {"types": "deb", "suites": "{suites}", "components": "main"}
            lines = (f"{name}: {value.replace('{', '{{').replace('}', '}}')}" for name, value in kept.items())
            found.append(Source("\n".join(lines).replace("{{suites}}", "{suites}") + "\n", ".sources"))
    return found


def _parse_one_line(text: str, suites: set[str]) -> list[Source]:
    found = []
    for line in text.splitlines():
        match = ONE_LINE.match(line.split("#")[0].strip())
        if match and match["suite"] in suites and "main" in match["components"].split():
            found.append(Source(f"deb {match['options'] or ''}{match['uri']} {{suites}} main\n", ".list"))
    return found


def release_sources(apt_dir: Path, codename: str) -> list[Source]:
    """The machine's apt entries for the release it runs, whichever of the two formats they are in."""
    suites = ALIASES | {codename}
    files = [apt_dir / "sources.list", *sorted((apt_dir / "sources.list.d").glob("*"))]
    found = []
    for file in files:
        if file.suffix == ".sources":
            found += _parse_deb822(file.read_text(), suites)
        elif file.suffix == ".list" and file.exists():
            found += _parse_one_line(file.read_text(), suites)
    return list(dict.fromkeys(found))


class PrivateApt:
    """apt with its own sources, lists and cache below `root`, and the belief that nothing is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archives = root / "archives"
        for folder in (root / "sources", root / "lists" / "partial", self.archives / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        # An empty package database makes apt's own solver name every package that the wanted one
        # needs: exactly the closure to unpack, alternatives and virtual packages included.
        (root / "status").write_text("")
        self._options = [
            f"Dir::Etc::sourceparts={root / 'sources'}",
            "Dir::Etc::sourcelist=/dev/null",
            "Dir::Etc::preferences=/dev/null",  # a pin that keeps testing out of the machine is right there,
            "Dir::Etc::preferencesparts=/dev/null",  # and would only hide the package here
            f"Dir::State::status={root / 'status'}",
            f"Dir::State::extended_states={root / 'extended_states'}",
            f"Dir::State::Lists={root / 'lists'}",
            f"Dir::Cache={root}",
            f"Dir::Cache::archives={self.archives}",
            "Acquire::Languages=none",
            "APT::Get::List-Cleanup=false",  # suites share a base, whose list need not be fetched twice
            "APT::Update::Error-Mode=any",  # else apt takes an archive out of reach for an empty one
        ]

    def _call(self, program: str, *arguments: str) -> str:
        options = [part for option in self._options for part in ("-o", option)]
        return run([program, *options, *arguments], env={"DEBIAN_FRONTEND": "noninteractive"})

    def use(self, source: Source, suites: list[str]) -> None:
        """Point at other suites of the same archive and fetch their package lists."""
        for old in (self.root / "sources").iterdir():
            old.unlink()
        # The one-line format takes one suite per line, the other takes all of them in one field.
        texts = suites if source.file_suffix == ".list" else [" ".join(suites)]
        entry = self.root / "sources" / f"release{source.file_suffix}"
        entry.write_text("".join(source.template.format(suites=text) for text in texts))
        self._call("apt-get", "-q", "update")

    def candidate(self, package: str, suite: str) -> str | None:
        """Version of a package that would be installed from a suite."""
        match = re.search(
            r"^\s*Candidate: (?!\(none\))(\S+)", self._call("apt-cache", "-t", suite, "policy", package), re.M
        )
        return match[1] if match else None

    def download(self, package: str, suite: str) -> list[Path]:
        """Fetch a package and all that it depends on; returns the archive files."""
        for left_over in self.archives.glob("*.deb"):  # of a suite whose download broke off
            left_over.unlink()
        options = ["-qy", "-t", suite, "--no-install-recommends", "--download-only"]
        self._call("apt-get", *options, "install", package)
        return sorted(self.archives.glob("*.deb"))
