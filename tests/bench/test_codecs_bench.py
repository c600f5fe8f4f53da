"""The codec benchmark sends real memory over a shaped link, checks what arrived, and leaves no namespace behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from whimbrel.bench import codecs, memories
from whimbrel.bench.codecs import WAYS, Rate, summary
from whimbrel.bench.shaped import shaped_pair
from whimbrel.model.errors import BadInput
from whimbrel.model.units import PAGE_BYTES


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    assert not list(Path("/run/netns").glob(f"whimbrel-bench-{os.getpid()}-*"))


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
@pytest.mark.thorough
def test_every_codec_carries_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "of_program", lambda: memories.made(1 << 20)[0]())
    text = StringIO()
    rate = Rate("400 Mbit/s", 400e6, 1 << 20, 1)
    result = codecs.run(Console(file=text, width=200), rates=(rate,))
    assert {entry["strategy"] for entry in result["summary"]} == {str(codec) for codec in WAYS}
    shares = {(entry["workload"], entry["strategy"]): entry["sent_share"] for entry in result["summary"]}
    assert shares["zero-heavy", "raw"] < 0.4, "zero pages do not cross"
    assert shares["text", "delta"] < shares["text", "zstd"] < 0.5 < shares["text", "raw"]
    assert shares["random", "delta"] < shares["random", "zstd"] > 0.9
    assert all(entry["ratio_raw"] == 1 for entry in result["summary"] if entry["strategy"] == "raw")
    assert "xor+zstd" in text.getvalue()


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
def test_the_link_goes_when_the_measurement_fails() -> None:
    pair = shaped_pair(1e9)
    ends = pair.__enter__()
    assert Path(ends.source).exists()
    assert not pair.__exit__(ValueError, ValueError(), None)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another process's memory")
def test_an_image_is_what_the_process_held_and_holds() -> None:
    image = memories.of_program()
    assert len(image.first) * PAGE_BYTES > 20 << 20
    assert 0 < len(image.changed) < len(image.first)
    assert bool((np.diff(image.changed) > 0).all())
    assert bool((image.first[image.changed] != image.then).any())


def test_a_process_that_is_not_there_is_named() -> None:
    with pytest.raises(BadInput, match="process 4194304"):
        memories.of_process(4194304, "nobody")


def test_summary_puts_every_codec_beside_raw() -> None:
    def entry(codec: str, rate: float) -> dict[str, object]:
        return {
            "workload": "text", "link": "slow", "strategy": codec, "bytes_per_s": rate, "raw_bytes": [80, 20],
            "sent_bytes": [40, 10], "took_s": [8.0, 4.0], "codec": ["zstd", "xor+zstd"],
        }  # fmt: skip

    found = {one["strategy"]: one for one in summary([entry("raw", 10.0), entry("auto", 25.0), entry("auto", 35.0)])}
    assert found["auto"]["ratio_raw"] == 3.0
    assert (found["auto"]["n"], found["auto"]["sent_share"]) == (2, 0.5)
    assert found["auto"]["first_bytes_per_s"]["p50"] == 10.0
    assert found["auto"]["changed_bytes_per_s"]["p50"] == 5.0
