"""What a walk showed, as figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from whimbrel.experiments.coordinated_facts import delay_facts, downtime_facts, excerpt, walk_facts, walk_of
from whimbrel.experiments.coordinated_picture import draw_walks
from whimbrel.experiments.coordinated_walks import topology_text
from whimbrel.experiments.known.coordinated import EXPERIMENT, FIGURE_4, FIGURE_5, PLANNERS, hidden
from whimbrel.experiments.model import By, Row
from whimbrel.experiments.rows import verdicts
from whimbrel.lab import topology
from whimbrel.model.decision import Decision, DecisionState, Times
from whimbrel.model.radio import HandoverRecord, RequestTimes, UserEvent

HANDOVER_S, FREEZE_S = 100.0, 103.0


def handover(**changes: Any) -> HandoverRecord:
    values = {"user": "u", "source": "a", "target": "b", "reason": "ordered", "unix_s": HANDOVER_S, "elapsed_s": 1.0,
              "interruption_ms": 500.0, "order": "d"}  # fmt: skip
    return HandoverRecord(**(values | changes))


def decision(**changes: Any) -> Decision:
    values: dict[str, Any] = {
        "id": "d", "user": "u", "service": "s", "planner": "nearest", "order": "uncoordinated", "reason": "",
        "made_unix_s": 99.0, "from_base_station": "a", "base_station": "b", "from_server": "e1", "server": "e2",
        "measured": Times(migration_ms=200.0, handover_ms=500.0, interruption_ms=700.0), "prediction_error": 0.3,
        "began_migration_unix_s": FREEZE_S, "state": DecisionState.DONE,
    }  # fmt: skip
    return Decision(**(values | changes))


def row_of(quantity: str, ours: float) -> Row:
    return Row(figure="figure-5", workload="simple", strategy="orchestrated", by=By.WHIMBREL, quantity=quantity,
               label="", unit="", ours=ours, median=ours)  # fmt: skip


def requests() -> list[UserEvent]:
    """One each 0.1 s that takes 10 ms, 4 of them in the service; at the gaps they take as long as those last."""
    sent = [90.0 + n / 10 for n in range(200)]
    delays = [510.0 if when == HANDOVER_S else 210.0 if when == FREEZE_S else 10.0 for when in sent]
    told = [(when, delay) for when, delay in zip(sent, delays, strict=True)
            if not HANDOVER_S < when < HANDOVER_S + 0.5 and not FREEZE_S < when < FREEZE_S + 0.2]  # fmt: skip
    return [
        RequestTimes(user="u", protocol="tcp", sent_unix_s=tuple(when for when, _ in told),
                     delays_ms=tuple(delay for _, delay in told), processing_ms=(4.0,) * len(told)),
        RequestTimes(user="u", protocol="udp", sent_unix_s=(95.0,), delays_ms=(None,)),
        handover(), handover(error="no", unix_s=50.0),
    ]  # fmt: skip


def test_the_delay_is_of_requests_that_met_no_gap() -> None:
    facts = delay_facts(walk_of("simple", "nearest", requests(), [decision()]))
    assert (facts["delay"], facts["processing"], facts["transmission"]) == pytest.approx((10.0, 4.0, 6.0))
    assert facts["lost"] == 0
    assert delay_facts(walk_of("simple", "nearest", [], [])) == {}


def test_the_downtime_of_a_handover_has_its_migration_in_it() -> None:
    (facts,) = downtime_facts(walk_of("simple", "nearest", requests(), [decision()]))
    assert (facts["downtime"], facts["handover"], facts["migration"]) == (700, 500, 200)
    assert facts["noticed"] == pytest.approx(700.0), "what the two requests waited more than the others"
    assert facts["first_error"] == pytest.approx(30.0)
    assert "prediction_error" not in facts, "the servers had no five migrations before"
    (alone,) = downtime_facts(walk_of("simple", "cloud", requests(), []))
    assert (alone["downtime"], alone["migration"]) == (500, 0)


def test_a_migration_of_a_later_decision_counts_with_the_handover_before_it() -> None:
    """The handover's own migration was rolled back, and a decision without a handover moved the service later."""
    rolled_back = decision(measured=Times(handover_ms=500.0, interruption_ms=500.0), state=DecisionState.FAILED,
                           began_migration_unix_s=0.0, prediction_error=None)  # fmt: skip
    (alone,) = downtime_facts(walk_of("simple", "orchestrated", requests(), [rolled_back]))
    assert (alone["downtime"], alone["migrated"]) == (500, 0)
    assert "with_migration" not in alone, "what is promised is judged on handovers that took the service along"
    later = decision(id="later", base_station="b", from_base_station="b", made_unix_s=101.0,
                     measured=Times(migration_ms=900.0, interruption_ms=900.0))  # fmt: skip
    (facts,) = downtime_facts(walk_of("simple", "orchestrated", requests(), [rolled_back, later]))
    assert (facts["downtime"], facts["migration"], facts["migrated"]) == (1400, 900, 1)
    assert facts["with_migration"] == 1400
    assert not hidden(row_of("with_migration", facts["with_migration"]))


def test_what_overlaps_counts_once() -> None:
    inside = decision(began_migration_unix_s=HANDOVER_S + 0.1)
    (facts,) = downtime_facts(walk_of("simple", "orchestrated", requests(), [inside]))
    assert (facts["downtime"], facts["migration"]) == (500, 200)


def test_the_walks_sum_has_every_gap_in_it() -> None:
    first = decision(id="first", began_migration_unix_s=50.0)
    facts = walk_facts(walk_of("simple", "nearest", requests(), [first, decision()]))
    assert facts == {"walk_downtime": 900.0, "handovers": 1.0, "migrations": 2.0}


def test_a_walk_without_migrations_breaks_a_promise() -> None:
    (facts,) = downtime_facts(walk_of("simple", "orchestrated", requests(), []))
    rows = [row_of("migrated", facts["migrated"]), row_of("downtime", facts["downtime"])]
    broken = [one.promise for one in verdicts(FIGURE_5, rows) if one.broken]
    assert broken == ["under orchestrated at least 60% of the handovers take the service along"]


def test_a_request_that_was_never_answered_is_noticed() -> None:
    told = [event for event in requests() if not isinstance(event, RequestTimes) or event.protocol != "tcp"]
    sent = tuple(90.0 + n / 10 for n in range(200) if not 1.0 < n / 10 - 10.0 < 1.8 and not 0 < n / 10 - 10.0 < 0.8)
    times = RequestTimes(user="u", protocol="tcp", sent_unix_s=sent,
                         delays_ms=tuple(None if when == HANDOVER_S else 10.0 for when in sent))  # fmt: skip
    (facts,) = downtime_facts(walk_of("simple", "cloud", [*told, times], []))
    assert facts["noticed"] == pytest.approx(790.0), "from it to the next one, less what is usual"


def test_quick_has_all_three_services() -> None:
    quick = [cell for cell in EXPERIMENT.cells if EXPERIMENT.quick_cells(cell)]
    assert {cell.workload for cell in quick} == {"simple", "face", "objects"}
    assert all({"nearest", "orchestrated"} <= {cell.strategy for cell in quick if cell.workload == name}
               for name in ("simple", "face", "objects"))  # fmt: skip


def test_predictions_count_after_five_migrations_of_each_server() -> None:
    before = [decision(id=f"d{n}", made_unix_s=float(n)) for n in range(5)]
    (facts,) = downtime_facts(walk_of("simple", "nearest", requests(), [*before, decision()]))
    assert facts["prediction_error"] == pytest.approx(30.0)


def test_the_excerpt_has_both_gaps() -> None:
    walk = walk_of("simple", "nearest", requests(), [decision()])
    shown, gaps = excerpt(walk, walk.handovers[0])
    assert [gap.kind for gap in gaps] == ["handover", "migration"]
    assert 90.0 <= shown[0].sent_unix_s <= shown[-1].sent_unix_s <= 110.0


def test_the_picture_is_drawn_also_of_walks_without_a_handover(tmp_path: Path) -> None:
    walks = {
        "nearest": walk_of("simple", "nearest", requests(), [decision()]),
        "cloud": walk_of("simple", "cloud", [], []),
    }
    for planner, walk in walks.items():
        (tmp_path / f"walk-simple-{planner}.json").write_bytes(msgspec.json.encode(walk))
    draw_walks(tmp_path, tmp_path / "it.png", ("simple", "face"), PLANNERS)
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_promised_of_a_strategy_beside_another() -> None:
    def row(strategy: str, ours: float) -> Row:
        return Row(figure="figure-4", workload="simple", strategy=strategy, by=By.WHIMBREL, quantity="delay",
                   label="", unit="ms", ours=ours)  # fmt: skip

    wanted = next(promise for promise in FIGURE_4.promises if promise.beside)
    judged = {ours: next(one for one in verdicts(FIGURE_4, [row("random", 100.0), row("orchestrated", ours)])
                         if one.promise == wanted.text) for ours in (80.0, 90.0)}  # fmt: skip
    assert (judged[80.0].held, judged[90.0].held) == (1, 0)


def test_every_service_meets_every_planner_on_the_papers_testbed(tmp_path: Path) -> None:
    assert {(cell.workload, cell.strategy) for cell in EXPERIMENT.cells} == {
        (workload, planner) for workload in ("simple", "face", "objects") for planner in PLANNERS
    }
    (tmp_path / "t.toml").write_text(topology_text("zz"))
    lab, paper = topology.load(tmp_path / "t.toml"), topology.load(Path("coordinated"))
    assert lab.prefix == "zz-"
    assert [link.shape for link in lab.links] == [link.shape for link in paper.links]
    assert not {site.name for site in lab.sites} & {site.name for site in paper.sites}
