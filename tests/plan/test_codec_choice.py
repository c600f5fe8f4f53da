"""When packing pays, by tables; what a link was seen to carry; and that a choice neither flutters nor sticks."""

from __future__ import annotations

import itertools

import pytest

from whimbrel.plan.codec_choice import (
    FIRST_TRIAL_S,
    PEAK_BYTES,
    RAW_ABOVE_BYTES_PER_S,
    SATURATED,
    TRIAL_LOOKS,
    Choice,
    Costs,
    Link,
    Packing,
    choose,
    keeps_copies,
    predicted_s,
)
from whimbrel.plan.strategies import Codec

MBIT_100, GBIT_1, GBIT_10, NO_LIMIT = 12.5e6, 125e6, 1.25e9, 2.2e9
READ = 2e9
PROGRAM = Packing(590e6, 4.9)  # measured: a Python service, first round
CHANGED = Packing(2.4e9, 40.0)  # its changed pages as differences
NOISE = Packing(4e9, 1.0)
MEDIA = Packing(650e6, 1.05)
BATCH = 2 << 20
GIGABYTE = 1 << 30


def saturated(bytes_per_s: float, looks: int = 1) -> Link:
    return Link(seen_bytes_per_s=bytes_per_s, certain=True, saturated=True, looks=looks)


def packs(link: Link, packing: Packing | None, size: int = GIGABYTE, *, now: bool = False) -> bool:
    before = Choice(pack=now, next_trial_s=1e9)
    return choose(Codec.AUTO, Costs(link, READ, packing), size, BATCH, before=before, now_s=0.0).pack


@pytest.mark.parametrize(
    ("link", "packing", "expected"),
    [
        (MBIT_100, PROGRAM, True),
        (MBIT_100, CHANGED, True),
        (MBIT_100, NOISE, False),
        (MBIT_100, MEDIA, False),
        (GBIT_1, PROGRAM, True),
        (GBIT_1, MEDIA, False),
        (GBIT_10, PROGRAM, False),
        (GBIT_10, NOISE, False),
        (NO_LIMIT, PROGRAM, False),
        (NO_LIMIT, CHANGED, False),
    ],
)
def test_a_round_is_packed_where_that_is_shorter(link: float, packing: Packing, expected: bool) -> None:
    assert packs(saturated(link), packing) is expected


@pytest.mark.parametrize(
    ("link", "packing", "size", "expected"),
    [
        (MBIT_100, PROGRAM, 64 << 10, True),
        (GBIT_1, PROGRAM, 1 << 20, True),
        # one batch waits for its coding before anything leaves: on a fast link that is longer than sending it as it is
        (GBIT_1, Packing(170e6, 4.9), 1 << 20, False),
        (GBIT_1, Packing(170e6, 4.9), GIGABYTE, True),
        (GBIT_10, PROGRAM, 64 << 10, False),
    ],
)
def test_in_a_freeze_the_first_batch_counts(link: float, packing: Packing, size: int, expected: bool) -> None:
    assert packs(saturated(link), packing, size) is expected


def test_the_prediction_is_the_sum_it_says() -> None:
    costs = Costs(saturated(100.0), 200.0, Packing(400.0, 4.0))
    # raw: 10 bytes a batch are read in 0.05 s and sent in 0.1 s; the link sets the pace
    assert predicted_s(costs, 100, 10, pack=False) == pytest.approx(0.05 + 100 / 100)
    # packed: 0.05 s to read, 0.025 s to pack, 0.025 s to send; coding sets the pace
    assert predicted_s(costs, 100, 10, pack=True) == pytest.approx(100 * (1 / 200 + 1 / 400) + 0.025)
    with pytest.raises(ValueError):
        predicted_s(Costs(Link(), 200.0, PROGRAM), 100, 10, pack=True)


@pytest.mark.parametrize("packing_now", [True, False])
@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD, Codec.DELTA])
def test_a_codec_that_was_asked_for_is_used(codec: Codec, packing_now: bool) -> None:
    for link, packing in itertools.product((Link(), saturated(NO_LIMIT), saturated(1e6)), (None, NOISE, PROGRAM)):
        before = Choice(pack=packing_now)
        chosen = choose(codec, Costs(link, READ, packing), GIGABYTE, BATCH, before=before, now_s=5.0)
        assert chosen.pack is (codec is not Codec.RAW)


def test_raw_while_nothing_is_known() -> None:
    assert not packs(Link(), PROGRAM)
    assert not packs(saturated(MBIT_100), None)
    assert not packs(Link().after(1e6, 0.1, 0.1), PROGRAM), "it carries that at least; more is not known"
    assert packs(Link(limit_bytes_per_s=MBIT_100), PROGRAM), "a limit is known from the start"


def test_what_is_in_force_stays_until_the_other_is_clearly_better() -> None:
    even = Packing(1e9, 1.05)
    assert not packs(saturated(MBIT_100), even, now=False)
    assert packs(saturated(MBIT_100), even, now=True)
    assert not packs(saturated(MBIT_100), Packing(1e9, 0.8), now=True)


def test_what_a_link_was_seen_to_carry() -> None:
    link = Link().after(5e6, 0.1, waiting=0.1)
    assert (link.bytes_per_s, link.at_least_bytes_per_s) == (0.0, pytest.approx(5e7))
    link = link.after(2e6, 0.1, waiting=0.2)
    assert link.at_least_bytes_per_s == pytest.approx(5e7), "less crossed because less was sent"
    link = link.after(1e6, 0.1, waiting=SATURATED)
    assert link.bytes_per_s == pytest.approx(1e7), "now everything waited for it"
    link = link.after(3e6, 0.1, waiting=1.0)
    assert link.bytes_per_s == pytest.approx(2e7)
    link = link.after(9e6, 0.1, waiting=0.0)
    assert (link.bytes_per_s, link.saturated, link.looks) == (pytest.approx(9e7), False, 5)


@pytest.mark.parametrize(
    ("seen", "limit", "expected"), [(5e6, 0.0, 5e6), (5e6, 2e6, 2e6), (5e6, 9e6, 5e6), (0.0, 2e6, 2e6), (0.0, 0.0, 0.0)]
)
def test_no_more_than_the_limit(seen: float, limit: float, expected: float) -> None:
    assert Link(seen, certain=True, limit_bytes_per_s=limit).bytes_per_s == expected


def test_where_packing_holds_everything_up_raw_is_tried_ever_more_rarely() -> None:
    """The link was taken for slow at first: without a trial it would never be found out."""
    wrong = Link(seen_bytes_per_s=GBIT_1, certain=True, saturated=False, looks=3)
    costs = Costs(wrong, READ, PROGRAM)
    choice = choose(Codec.AUTO, costs, GIGABYTE, BATCH, before=Choice(pack=False), now_s=10.0)
    assert choice.pack
    assert choose(Codec.AUTO, costs, GIGABYTE, BATCH, before=choice, now_s=10.0 + FIRST_TRIAL_S / 2).pack
    trial = choose(Codec.AUTO, costs, GIGABYTE, BATCH, before=choice, now_s=10.0 + FIRST_TRIAL_S)
    assert (trial.pack, trial.trial_looks) == (False, 3 + TRIAL_LOOKS)
    assert choose(Codec.AUTO, costs, GIGABYTE, BATCH, before=trial, now_s=10 + 1.5 * FIRST_TRIAL_S) == trial, (
        "it goes on"
    )
    # the link is as slow as it was thought to be: back, and the next trial is twice as far away
    seen = Costs(Link(GBIT_1, certain=True, saturated=True, looks=5), READ, PROGRAM)
    after = choose(Codec.AUTO, seen, GIGABYTE, BATCH, before=trial, now_s=10 + 1.6 * FIRST_TRIAL_S)
    assert (after.pack, after.pause_s) == (True, 2 * FIRST_TRIAL_S)
    assert choose(Codec.AUTO, costs, GIGABYTE, BATCH, before=after, now_s=10 + 2.6 * FIRST_TRIAL_S).pack is True
    # it is a fast one: raw it stays
    fast = Costs(Link(GBIT_10, certain=True, saturated=True, looks=5), READ, PROGRAM)
    assert not choose(Codec.AUTO, fast, GIGABYTE, BATCH, before=trial, now_s=10 + 1.6 * FIRST_TRIAL_S).pack


def test_no_trial_where_the_link_holds_everything_up() -> None:
    choice = Choice(pack=True)
    for turn in range(100):
        costs = Costs(saturated(MBIT_100, turn), READ, PROGRAM)
        choice = choose(Codec.AUTO, costs, GIGABYTE, BATCH, before=choice, now_s=float(turn))
        assert choice.pack


def test_no_trial_where_the_link_may_carry_no_more() -> None:
    """Under the user's limit packing is shorter whatever the link could do."""
    limited = Link(seen_bytes_per_s=MBIT_100 / 2, certain=True, limit_bytes_per_s=MBIT_100, looks=3)
    choice = Choice(pack=True)
    assert choose(Codec.AUTO, Costs(limited, READ, PROGRAM), GIGABYTE, BATCH, before=choice, now_s=1e6) == choice


def test_copies_are_kept_where_differences_could_pay() -> None:
    slow, fast = RAW_ABOVE_BYTES_PER_S * 0.9, RAW_ABOVE_BYTES_PER_S * 1.1
    assert keeps_copies(Codec.AUTO, Link())
    assert keeps_copies(Codec.AUTO, saturated(slow))
    assert not keeps_copies(Codec.AUTO, saturated(fast))
    assert not keeps_copies(Codec.AUTO, Link(seen_bytes_per_s=fast)), "that fast it is at least"
    assert keeps_copies(Codec.AUTO, Link(seen_bytes_per_s=fast, limit_bytes_per_s=slow))
    for link in (Link(), saturated(slow), saturated(fast)):
        assert keeps_copies(Codec.DELTA, link)
        assert not keeps_copies(Codec.ZSTD, link)
        assert not keeps_copies(Codec.RAW, link)


def test_a_link_that_once_was_fast_gets_raw_pages_however_slow_it_looks_now() -> None:
    fast = Link().after(RAW_ABOVE_BYTES_PER_S * 0.02, 0.02, waiting=1.0)
    choice = Choice(pack=True)
    for turn in range(1, 20):
        now_slow = fast.after(MBIT_100 * 0.02, 0.02, waiting=1.0)
        choice = choose(Codec.AUTO, Costs(now_slow, READ, PROGRAM), GIGABYTE, BATCH, before=choice, now_s=float(turn))
        assert not choice.pack
        assert not keeps_copies(Codec.AUTO, now_slow)
        fast = now_slow


def test_a_few_bytes_that_were_quick_make_no_fast_link() -> None:
    burst = Link().after(PEAK_BYTES / 2, 0.0001, waiting=1.0)
    assert not burst.is_fast


def test_a_limit_makes_a_fast_link_slow() -> None:
    fast = Link(limit_bytes_per_s=MBIT_100).after(RAW_ABOVE_BYTES_PER_S * 0.02, 0.02, waiting=1.0)
    assert not fast.is_fast
    assert choose(Codec.AUTO, Costs(fast, READ, PROGRAM), GIGABYTE, BATCH, before=Choice(pack=False), now_s=1.0).pack


def test_a_sender_that_held_back_says_nothing_against_a_faster_link() -> None:
    link = Link().after(12e6, 1.0, 1.0)
    assert link.after(6e6, 1.0, 1.0, held_back=True).bytes_per_s == 12e6
    assert link.after(18e6, 1.0, 0.0, held_back=True).bytes_per_s == 18e6
    assert link.after(6e6, 1.0, 1.0).bytes_per_s < 12e6
