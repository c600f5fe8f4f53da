"""The codec benchmark sends real memory over a shaped link, checks what arrived, and leaves no namespace behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from whimbrel.bench import codecs, memories
from whimbrel.bench.codecs import WAYS, Rate, summary
from whimbrel.bench.report import fails
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
    rate = Rate("400 Mbit/s", 400e6, 1 << 20, 1, promised=1e6, judged_runs=3)
    result = codecs.run(Console(file=text, width=250), rates=(rate,), judged="simple")
    (judged,) = [entry for entry in result["summary"] if entry["promised"]]
    assert (judged["workload"], judged["strategy"], judged["n"]) == ("simple", "auto", 3)
    assert judged["promised"].startswith("FAIL: <")
    assert fails(result)
    assert "FAIL: <" in text.getvalue()
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


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
def test_the_memory_of_a_workload_is_that_of_its_service_at_work() -> None:
    image = memories.of_workload("simple", settle_s=0.0)
    assert image.name == "simple"
    assert len(image.first) * PAGE_BYTES > 2 << 20, "an interpreter, not the shell that started it"
    assert len(image.changed) > 0, "its client asks it meanwhile"


def test_a_process_is_full_when_it_grows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 200, 300, 300, 300, 301, 301, 301, 302, 302])
    looks = []

    class Growing:
        def __init__(self, pid: int) -> None:
            pass

        def memory_info(self) -> SimpleNamespace:
            looks.append(next(sizes))
            return SimpleNamespace(rss=looks[-1])

    monkeypatch.setattr(memories.psutil, "Process", Growing)
    monkeypatch.setattr(memories.time, "sleep", lambda _: None)
    memories._wait_until_full(1, 60.0)
    assert looks == [100, 200, 300, 300, 300, 301, 301]


@pytest.mark.parametrize(
    ("ratio", "least", "runs", "said"),
    [
        (2.4, 2.0, 3, "PASS"),
        (1.9, 2.0, 3, "FAIL: < 2 x"),
        (0.996, 1.0, 9, "PASS"),
        (0.98, 1.0, 9, "FAIL: < 1 x"),
        (2.4, 2.0, 2, "unproved: 2 runs, 3 are needed"),
    ],
)
def test_what_is_promised_of_codecs(ratio: float, least: float, runs: int, said: str) -> None:
    assert codecs.verdict(ratio, least, runs) == said


def test_what_ships_is_judged_on_objects_over_a_slow_and_a_fast_link() -> None:
    assert codecs.JUDGED == "objects"
    wanted = {rate.bps: rate.promised for rate in codecs.RATES if rate.promised and rate.judged_runs >= 3}
    assert wanted == {100e6: 2.0, 10e9: 1.0}


def test_only_what_a_migration_would_choose_is_judged() -> None:
    def entries(auto: float) -> list[dict[str, object]]:
        rates = {"raw": 10.0, "zstd": 15.0, "delta": 15.0, "auto": auto}
        return summary([
            {"workload": workload, "link": "slow", "strategy": codec, "bytes_per_s": rate, "raw_bytes": [80, 20],
             "sent_bytes": [40, 10], "took_s": [8.0, 4.0], "codec": ["zstd"]}
            for workload in ("objects", "text") for codec, rate in rates.items() for _ in range(3)
        ], {"slow": 2.0})  # fmt: skip

    for auto, failing in ((21.0, False), (19.0, True)):
        found = entries(auto)
        assert [(entry["workload"], entry["strategy"]) for entry in found if entry["promised"]] == [("objects", "auto")]
        assert fails({"summary": found}) is failing


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
