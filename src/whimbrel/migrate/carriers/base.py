"""What every carrier of memory can do, whatever way it takes. All of it blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from whimbrel.migrate.pagechannel import Kind


@dataclass(frozen=True)
class Carried:
    """What one step brought over: `pages` were dirty, `sent_bytes` left this side for them (codecs, headers and all),
    `zero_pages` of them hold nothing but zeros and crossed as such; `parts_ms`: how long what took, by name.
    `codecs`: (name, pages) of how the others crossed. `remark`: what the record should say of it, if anything."""

    pages: int = 0
    sent_bytes: int = 0
    zero_pages: int = 0
    parts_ms: tuple[tuple[str, float], ...] = ()
    codecs: tuple[tuple[str, int], ...] = ()
    remark: str = ""

    def __add__(self, other: Carried) -> Carried:
        return Carried(
            self.pages + other.pages,
            self.sent_bytes + other.sent_bytes,
            self.zero_pages + other.zero_pages,
            self.parts_ms + other.parts_ms,
            _together(self.codecs + other.codecs),
            self.remark if other.remark in self.remark else other.remark,
        )

    @property
    def codec(self) -> str:
        """How the pages that hold something crossed, in words: ``zstd`` or ``xor+zstd 63 %, raw 37 %``, by pages."""
        total = sum(pages for _, pages in self.codecs)
        if len(self.codecs) < 2:
            return "".join(name for name, _ in self.codecs)
        shares = sorted(self.codecs, key=lambda entry: -entry[1])
        return ", ".join(f"{name} {100 * pages / total:.0f} %" for name, pages in shares)


def _together(codecs: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    sums: dict[str, int] = {}
    for name, pages in codecs:
        sums[name] = sums.get(name, 0) + pages
    return tuple(sums.items())


class Carrier(Protocol):
    @property
    def sent_bytes(self) -> int:
        """All that left this side for memory and images so far, headers too."""
        ...

    @property
    def parent_image(self) -> str:
        """The parent that CRIU's final dump must name, relative to its folder; empty: CRIU writes no pages."""
        ...

    def round(self, number: int) -> Carried:
        """While the service runs: what was written since the last round (in the first: everything) crosses, and has
        arrived when this returns."""
        ...

    def dirty_bytes(self) -> int | None:
        """While the service runs: how much of its memory the next round would find written; None when nobody knows."""
        ...

    def while_holding(self, held: Callable[[], bool]) -> Carried:
        """The freeze waits, for far gateways or for a moment without work, and the service runs: what may cross
        already, until they are `held`. May be called again and again."""
        ...

    def while_dumping(self, dumped: Callable[[], bool]) -> Carried:
        """The service stands still and CRIU writes its images: what may cross already, until it is `dumped`."""
        ...

    def last(self, images: Path) -> Carried:
        """CRIU's images are written, to `images`: the pages that the restore cannot do without cross, or are staged to
        cross with the images."""
        ...

    def deliver(self, images: Path) -> Carried:
        """CRIU's images cross, and with them whatever `last` staged: before it where nothing is."""
        ...

    def beside_restore(self, over: Callable[[], bool]) -> Carried:
        """The destination restores: the pages of `ranges_beside` cross. What may follow the resume crosses as well,
        until the time for it is `over`."""
        ...

    def answer(self, kind: Kind, number: int, payload: bytes) -> bool:
        """The destination asks for something on the page channel; False when that is no question to a carrier."""
        ...

    def leave_behind(self) -> None:
        """What has not crossed when the freeze has lasted long enough is to follow the resume."""
        ...

    def ranges_behind(self) -> dict[int, bytes]:
        """What `last` left for after the commit, as `RestoreOrder.behind`."""
        ...

    def ranges_beside(self) -> dict[int, bytes]:
        """What `last` left for the time of the restore, as `RestoreOrder.beside`."""
        ...

    def send_behind(self) -> None:
        """After the commit: send what was left behind. Returns when all has left; raises StepFailed."""
        ...

    def link_was_cut(self) -> None:
        """The page channel is another one now: whatever was left behind goes again."""
        ...

    def interrupt(self) -> None:
        """From another thread: whatever is under way beside the page channel fails, and nothing more is begun."""
        ...

    def close(self) -> None: ...
