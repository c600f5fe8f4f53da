"""Whether packing pages (zstd, and XOR against what crossed before) pays, from what was measured on the way. Pure.

One thread reads and codes a batch while another sends the one before, so the slower of the two sets the pace, and the
first batch waits for its coding. With what a batch costs to read and to pack, how small it gets, and what the link
carries, the time of a whole round follows, and the shorter one is taken. A freeze is the same sum with few pages: there
the first batch counts most. All bytes here are of pages that hold something: zero pages cost nothing either way.

What the link carries shows only when it is what everything waits for. While it is not, pages cross raw; and where
packing has become what everything waits for, raw is tried again now and then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from whimbrel.plan.strategies.composition import Codec

GAIN = 0.87
"""The other way must be predicted to take less than this part of the present way's time: no going to and fro."""
NEWEST = 0.3
"""Weight of the newest measurement."""
SATURATED = 0.5
"""From this share of its time on that a sender waits for the link, what crosses is what the link carries."""
RAW_ABOVE_BYTES_PER_S = 250e6
"""A link that ever carried so much (2 Gbit/s) is not what a migration waits for: packing, and a copy of every page for
differences, would take the processor from the service and gain nothing. Without this rule a receiver that waited for a
processor looks like a slow link, and packing then makes all of it slower."""
PEAK_BYTES = 1 << 20
"""The least that must arrive during a look for its rate to count for the rule above."""
FIRST_TRIAL_S = 0.1
TRIAL_LOOKS = 2


@dataclass(frozen=True)
class Packing:
    """What packing is measured to do: bytes per second that one thread packs, and their size before over after."""

    bytes_per_s: float
    ratio: float

    def blended(self, newer: Packing) -> Packing:
        return Packing(
            bytes_per_s=blend(self.bytes_per_s, newer.bytes_per_s),
            ratio=1 / blend(1 / self.ratio, 1 / newer.ratio),
        )


@dataclass(frozen=True)
class Link:
    """What the link was seen to carry, bytes per second (`seen`: at least that; exactly, when `certain`), and what it
    may (`limit`, 0: no limit). `saturated`: whether everything waited for it at the last of `looks` looks; `peak`: the
    most that it carried during one of them."""

    seen_bytes_per_s: float = 0.0
    certain: bool = False
    limit_bytes_per_s: float = 0.0
    saturated: bool = False
    looks: int = 0
    peak_bytes_per_s: float = 0.0

    @property
    def is_fast(self) -> bool:
        """Whether packing cannot pay, whatever the present rate is."""
        peak, limit = self.peak_bytes_per_s, self.limit_bytes_per_s
        return peak >= RAW_ABOVE_BYTES_PER_S and (limit <= 0 or limit >= RAW_ABOVE_BYTES_PER_S)

    @property
    def bytes_per_s(self) -> float:
        """What it carries; 0 while that is not known."""
        known = (self.seen_bytes_per_s if self.certain else 0.0, self.limit_bytes_per_s)
        return min((rate for rate in known if rate > 0), default=0.0)

    @property
    def at_least_bytes_per_s(self) -> float:
        """What it carries at least, as far as is known."""
        seen, limit = self.seen_bytes_per_s, self.limit_bytes_per_s
        return min(seen, limit) if limit > 0 else seen

    def after(self, delivered_bytes: float, took_s: float, waiting: float, *, held_back: bool = False) -> Link:
        """After another look: so much arrived in `took_s`, of which the sender spent the share `waiting` in waiting
        for the link. `held_back`: it gave the link no more than it was thought to carry, so that this says nothing
        against more."""
        rate, before = delivered_bytes / took_s, self.seen_bytes_per_s
        peak = max(self.peak_bytes_per_s, rate if delivered_bytes >= PEAK_BYTES else 0.0)
        saturated = waiting >= SATURATED
        if not saturated or held_back:
            rate = max(before, rate)
        elif self.certain:
            rate = blend(before, rate, 0.5)
        return replace(
            self,
            seen_bytes_per_s=rate,
            certain=self.certain or saturated,
            saturated=saturated,
            looks=self.looks + 1,
            peak_bytes_per_s=peak,
        )


@dataclass(frozen=True)
class Costs:
    """What was measured so far; `packing` None: nothing was packed yet."""

    link: Link
    read_bytes_per_s: float
    packing: Packing | None = None


@dataclass(frozen=True)
class Choice:
    """`pack`: what is done to the next batch. `trial_looks` not 0: raw is being tried until the link had so many looks.
    No trial before `next_trial_s`, and then none for `pause_s`."""

    pack: bool
    trial_looks: int = 0
    next_trial_s: float = 0.0
    pause_s: float = FIRST_TRIAL_S


def predicted_s(costs: Costs, size_bytes: int, batch_bytes: int, *, pack: bool) -> float:
    """How long pages of `size_bytes` take. Raises ValueError while link or packing are not known."""
    link = costs.link.bytes_per_s
    packing = costs.packing if pack else Packing(float("inf"), 1.0)
    if link <= 0 or packing is None:
        raise ValueError("nothing is known of the link or of packing")
    ready_s_per_byte = 1 / costs.read_bytes_per_s + 1 / packing.bytes_per_s
    sent_s_per_byte = 1 / (link * packing.ratio)
    first = min(batch_bytes, size_bytes)
    slower = max(ready_s_per_byte, sent_s_per_byte)
    return first * (ready_s_per_byte + sent_s_per_byte) + (size_bytes - first) * slower


def choose(codec: Codec, costs: Costs, size_bytes: int, batch_bytes: int, *, before: Choice, now_s: float) -> Choice:
    """What is done to the next batch, with `size_bytes` still to go; `now_s`: on a clock that only goes forward."""
    if codec is not Codec.AUTO:
        return replace(before, pack=codec is not Codec.RAW)
    if costs.link.is_fast:
        return replace(before, pack=False, trial_looks=0)
    if before.trial_looks > costs.link.looks:
        return before
    pack = _packing_is_shorter(costs, size_bytes, batch_bytes, packing_now=before.pack or before.trial_looks > 0)
    if not pack or not before.pack:
        # The first trial comes a pause after packing began; one that has ended changes nothing about the next.
        begins = pack and not before.trial_looks
        return replace(
            before, pack=pack, trial_looks=0, next_trial_s=now_s + before.pause_s if begins else before.next_trial_s
        )
    if not trial_is_due(costs.link, before, now_s) or _limit_forbids_raw(costs, size_bytes, batch_bytes):
        return before
    return Choice(
        pack=False,
        trial_looks=costs.link.looks + TRIAL_LOOKS,
        next_trial_s=now_s + 2 * before.pause_s,
        pause_s=2 * before.pause_s,
    )


def trial_is_due(link: Link, before: Choice, now_s: float) -> bool:
    """Whether what is packed now may be tried raw, in small batches, for the link may carry more than was seen."""
    return before.pack and not link.saturated and now_s >= before.next_trial_s


def _limit_forbids_raw(costs: Costs, size_bytes: int, batch_bytes: int) -> bool:
    """More than the user's limit the link will not be seen to carry."""
    most = replace(costs, link=Link(limit_bytes_per_s=costs.link.limit_bytes_per_s))
    return most.link.bytes_per_s > 0 and _packing_is_shorter(most, size_bytes, batch_bytes, packing_now=True)


def _packing_is_shorter(costs: Costs, size_bytes: int, batch_bytes: int, *, packing_now: bool) -> bool:
    if costs.link.bytes_per_s <= 0 or costs.packing is None:
        return False
    packed_s = predicted_s(costs, size_bytes, batch_bytes, pack=True)
    raw_s = predicted_s(costs, size_bytes, batch_bytes, pack=False)
    return packed_s < raw_s / GAIN if packing_now else packed_s < raw_s * GAIN


def keeps_copies(codec: Codec, link: Link) -> bool:
    """Whether the source keeps a copy of what crosses, for differences later. While nothing is known it does."""
    if codec is not Codec.AUTO:
        return codec is Codec.DELTA
    return not link.is_fast and link.at_least_bytes_per_s < RAW_ABOVE_BYTES_PER_S


def blend(before: float, newer: float, weight: float = NEWEST) -> float:
    return before + weight * (newer - before)
