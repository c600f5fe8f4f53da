"""What is coded comes back byte for byte, whatever the pages; what no encoder wrote is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.memory.codecs import (
    MAX_BATCH_PAGES,
    Coded,
    Coding,
    Decoder,
    Encoder,
    from_runs,
    in_block,
    to_runs,
    zero_pages,
)
from whimbrel.memory.comparing import WORDS_PER_PAGE, Before, Words
from whimbrel.memory.store import UNKNOWN, pages_of
from whimbrel.model.errors import ProtocolMismatch
from whimbrel.model.units import PAGE_BYTES

FIRST_PAGE = 0x7F0000000


@st.composite
def batches(draw: st.DrawFn) -> tuple[Words, Words, list[bool]]:
    """(contents, what crossed before, whether it did) of pages: zeros, noise, repetition, small changes of each."""
    seed = draw(st.integers(0, 2**32 - 1))
    kinds = draw(
        st.lists(st.sampled_from(["zero", "noise", "text", "last word", "first word"]), min_size=1, max_size=40)
    )
    changes = draw(st.lists(st.sampled_from([0, 1, 100, 512]), min_size=len(kinds), max_size=len(kinds)))
    known = draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    rng = np.random.default_rng(seed)
    before = np.zeros((len(kinds), WORDS_PER_PAGE), np.uint64)
    for page, kind in zip(before, kinds, strict=True):
        if kind == "noise":
            page[:] = rng.integers(0, 2**64, WORDS_PER_PAGE, np.uint64)
        elif kind == "text":
            page[:] = np.frombuffer(b"what the \nrecord", np.uint64).repeat(WORDS_PER_PAGE // 2)
        elif kind == "last word":
            page[-1] = 1
        elif kind == "first word":
            page[0] = 1
    after = before.copy()
    for page, count in zip(after, changes, strict=True):
        page[rng.permutation(WORDS_PER_PAGE)[:count]] ^= np.uint64(rng.integers(1, 2**63))
    if draw(st.booleans()):
        after[rng.integers(len(kinds))] = 0
    return after, before, known


def ranges_with_gaps(count: int) -> np.ndarray:
    """Every fifth page is followed by a hole."""
    numbers = np.arange(count, dtype=np.uint64)
    return to_runs(numbers + numbers // np.uint64(5) + np.uint64(FIRST_PAGE), np.zeros(count, np.uint8))


def decoded(coded: Coded, before: Words) -> dict[int, bytes]:
    """What a destination makes of it that has `before` of the same pages, in order: {page number: contents}."""
    pages, codings = from_runs(np.frombuffer(coded.runs.tobytes(), np.uint64).reshape(-1, 2))
    contents = np.zeros((len(pages), WORDS_PER_PAGE), np.uint64)
    contents[codings == Coding.RAW] = np.frombuffer(coded.raw, np.uint64).reshape(-1, WORDS_PER_PAGE)
    contents[codings == Coding.SAME] = before[codings == Coding.SAME]
    inside = in_block(codings)
    if inside.any():
        window = bytearray(PAGE_BYTES * int(inside.sum()))
        copies, delta = np.flatnonzero(codings == Coding.DELTA), np.flatnonzero(codings[inside] == Coding.DELTA)
        Decoder().unpack(memoryview(coded.block), memoryview(window), copies, before, delta)
        contents[inside] = np.frombuffer(window, np.uint64).reshape(-1, WORDS_PER_PAGE)
    return {int(page): words.tobytes() for page, words in zip(pages, contents, strict=True)}


@given(batches())
def test_any_pages_come_back(batch: tuple[Words, Words, list[bool]]) -> None:
    after, before, known = batch
    ranges = ranges_with_gaps(len(after))
    slots = np.where(known, np.arange(len(after)), UNKNOWN)
    expected = {int(page): words.tobytes() for page, words in zip(pages_of(ranges), after, strict=True)}
    contents = memoryview(after.tobytes())
    encoder = Encoder()
    for coded in (
        encoder.plain(ranges, contents),
        encoder.packed(ranges, contents, None),
        encoder.packed(ranges, contents, Before(slots, before)),
    ):
        assert decoded(coded, before) == expected
        assert coded.count(Coding.ZERO) == int(zero_pages(after).sum()) == int((after == 0).all(axis=1).sum())
        assert coded.wire_bytes <= coded.runs.nbytes + len(contents)


def test_each_page_takes_the_coding_that_suits_it() -> None:
    rng = np.random.default_rng(1)
    before = rng.integers(0, 2**64, (6, WORDS_PER_PAGE), np.uint64)
    after = before.copy()
    after[0] = 0
    after[1, 100:110] ^= np.uint64(77)
    after[2] = 0x2020
    after[3] = 0x2121
    slots = np.array([0, 1, 2, UNKNOWN, 4, UNKNOWN])
    after[5] = 0x2222
    coded = Encoder().packed(ranges_with_gaps(6), memoryview(after.tobytes()), Before(slots, before))
    assert [Coding(coding).name for coding in coded.codings] == ["ZERO", "DELTA", "PACKED", "PACKED", "SAME", "PACKED"]
    assert coded.wire_bytes < 1000


def test_what_does_not_shrink_crosses_raw() -> None:
    noise = np.random.default_rng(1).integers(0, 2**64, (8, WORDS_PER_PAGE), np.uint64)
    coded = Encoder().packed(ranges_with_gaps(8), memoryview(noise.tobytes()), None)
    assert coded.count(Coding.RAW) == 8
    assert not coded.block


@pytest.mark.parametrize(
    "runs",
    [
        [(0x1000 | max(Coding) + 1, 0x2000)],
        [(0x1000, 0x1000)],
        [(0x2000, 0x1000)],
        [(0x1000, 0x2001)],
        [(0x1000, 0x3000), (0x2000, 0x4000)],
        [(0x3000, 0x4000), (0x1000, 0x2000)],
        [(0, (MAX_BATCH_PAGES + 1) * PAGE_BYTES)],
        [(0 | Coding.ZERO, 2**64 - PAGE_BYTES)],
        [(0 | Coding.ZERO, 2**63), (2**63 | Coding.ZERO, 2**64 - PAGE_BYTES)],
    ],
)
def test_runs_that_no_encoder_writes_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(ProtocolMismatch):
        from_runs(np.array(runs, np.uint64))


PAGES = 16
NONE, NO_COPIES = np.empty(0, np.int64), np.empty((0, WORDS_PER_PAGE), np.uint64)
GOOD = zstandard.ZstdCompressor().compress(bytes(PAGES * PAGE_BYTES))


def block_of(frame: bytes, total: int = 0) -> bytes:
    return struct.pack("<Q", total) + frame


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"1234567",
        block_of(b""),
        block_of(b"no zstd at all"),
        block_of(GOOD[:-1]),
        block_of(GOOD, total=1),
        block_of(zstandard.ZstdCompressor().compress(bytes((PAGES - 1) * PAGE_BYTES))),
        block_of(zstandard.ZstdCompressor().compress(bytes((PAGES + 1) * PAGE_BYTES))),
        # claims no length at all, and would unfold to a gigabyte
        block_of(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26))),
        # claims the right length, and holds more
        block_of(GOOD[:5] + struct.pack("<H", 1) + GOOD[7:]),
    ],
)
def test_hostile_blocks_are_refused_within_the_memory_given(block: bytes) -> None:
    around = bytearray(b"\x55" * (PAGES + 2) * PAGE_BYTES)
    window = memoryview(around)[PAGE_BYTES:-PAGE_BYTES]
    with pytest.raises(ProtocolMismatch):
        Decoder().unpack(memoryview(block), window, NONE, NO_COPIES, NONE)
    assert around[:PAGE_BYTES] == around[-PAGE_BYTES:] == b"\x55" * PAGE_BYTES


@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_damaged_blocks_are_refused_or_are_the_same(noise: bytes, start: int, length: int) -> None:
    block = block_of(GOOD[:start] + noise + GOOD[start + length :])
    window = bytearray(PAGES * PAGE_BYTES)
    try:
        Decoder().unpack(memoryview(block), memoryview(window), NONE, NO_COPIES, NONE)
    except ProtocolMismatch:
        return
    assert int(np.frombuffer(window, np.uint64).sum()) == 0


def test_copies_that_came_apart_are_noticed() -> None:
    before = np.random.default_rng(1).integers(0, 2**64, (PAGES, WORDS_PER_PAGE), np.uint64)
    after = before + np.uint64(1)
    after[:, 5:] = before[:, 5:]
    coded = Encoder().packed(ranges_with_gaps(PAGES), memoryview(after.tobytes()), Before(np.arange(PAGES), before))
    assert coded.count(Coding.DELTA) == PAGES
    window = bytearray(PAGES * PAGE_BYTES)
    other = before.copy()
    other[3, 3] ^= np.uint64(1)
    with pytest.raises(ProtocolMismatch, match="come apart"):
        Decoder().unpack(memoryview(coded.block), memoryview(window), np.arange(PAGES), other, np.arange(PAGES))


def test_copies_are_renewed_where_asked_for() -> None:
    """Those that there are: of others somebody else makes new ones, and the page of zeros belongs to all."""
    rng = np.random.default_rng(1)
    copies = rng.integers(0, 2**64, (7, WORDS_PER_PAGE), np.uint64)
    copies[0] = 0
    slots = np.array([1, 2, 3, 4, 0, UNKNOWN])
    after = copies[[1, 2, 3, 4, 0, 5]]
    after[1, 7] ^= np.uint64(1)
    after[2] = rng.integers(0, 2**64, WORDS_PER_PAGE, np.uint64)
    after[3] = 0
    after[4, 9] = 1
    after[5] = 0x2020
    for renews in (False, True):
        kept = copies.copy()
        coded = Encoder().packed(ranges_with_gaps(6), memoryview(after.tobytes()), Before(slots, kept, renews))
        names = [Coding(coding).name for coding in coded.codings]
        assert names == ["SAME", "DELTA", "PACKED", "ZERO", "DELTA", "PACKED"]
        assert (kept[1:5] == (after[:4] if renews else copies[1:5])).all()
        assert (kept[[0, 5, 6]] == copies[[0, 5, 6]]).all()


def differences(*pages: dict[int, int]) -> bytes:
    """Of each page: which words differ, and by what."""
    coded = b""
    for page in pages:
        maps = [sum(1 << word % 64 for word in page if word // 64 == line) for line in range(8)]
        coded += struct.pack("<8Q", *maps) + struct.pack(f"<{len(page)}Q", *(page[word] for word in sorted(page)))
    return coded


def test_a_difference_is_what_the_protocol_says() -> None:
    before = np.random.default_rng(1).integers(0, 2**64, (3, WORDS_PER_PAGE), np.uint64)
    after = before[[2, 0]]
    changes: list[dict[int, int]] = [{511: 5, 0: 2**63, 64: 7}, dict.fromkeys(range(200, 300), 9)]
    for page, change in zip(after, changes, strict=True):
        for word, by in change.items():
            page[word] ^= np.uint64(by)
    total = int(after.sum(dtype=np.uint64))
    coded = Encoder().packed(ranges_with_gaps(2), memoryview(after.tobytes()), Before(np.array([2, 0]), before))
    assert struct.unpack_from("<Q", coded.block)[0] == total
    assert zstandard.decompress(coded.block[8:]) == differences(*changes)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"",
        differences({}),
        differences({}, {}, {}),
        differences({0: 1}, {})[:-1],
        differences({0: 1}, {}) + bytes(8),
        differences({word: 1 for word in range(512)}, {})[:-64],
        b"\xff" * 128,
        b"\xff" * 2 * (64 + PAGE_BYTES - 1),
    ],
)
def test_differences_that_do_not_add_up_are_refused(bytes_sent: bytes) -> None:
    around = bytearray(b"\x55" * 4 * PAGE_BYTES)
    block = block_of(zstandard.ZstdCompressor().compress(bytes_sent))
    with pytest.raises(ProtocolMismatch):
        Decoder().unpack(
            memoryview(block),
            memoryview(around)[PAGE_BYTES:-PAGE_BYTES],
            np.array([0, 1]),
            np.zeros((2, WORDS_PER_PAGE), np.uint64),
            np.array([0, 1]),
        )
    assert around[:PAGE_BYTES] == around[-PAGE_BYTES:] == b"\x55" * PAGE_BYTES


@pytest.mark.parametrize("slot", [-1, 2, 2**62])
def test_copies_that_are_not_there_are_none(slot: int) -> None:
    """The compiled part looks before it reads: it would read this process's other memory."""
    copies, slots = np.ones((2, WORDS_PER_PAGE), np.uint64), np.array([1, slot])
    words = np.ones((2, WORDS_PER_PAGE), np.uint64)
    coded = Encoder().packed(ranges_with_gaps(2), memoryview(words.tobytes()), Before(slots, copies, renews=True))
    assert [Coding(coding).name for coding in coded.codings] == ["SAME", "PACKED"]
    block = block_of(zstandard.ZstdCompressor().compress(differences({}, {})), total=2 * WORDS_PER_PAGE)
    window = memoryview(bytearray(2 * PAGE_BYTES))
    Decoder().unpack(memoryview(block), window, np.array([1, 0]), copies, np.array([0, 1]))
    with pytest.raises(ProtocolMismatch):
        Decoder().unpack(memoryview(block), window, slots, copies, np.array([0, 1]))
    with pytest.raises(IndexError):
        Decoder().unpack(memoryview(block), window, np.array([1, 0]), copies, np.array([0, 2]))
