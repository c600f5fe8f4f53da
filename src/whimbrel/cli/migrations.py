"""`migrate` and `migration ls | show | cancel | resolve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from whimbrel.cli.common import (
    ControllerOption,
    JsonOption,
    StrategyOption,
    connect,
    note,
    print_fields,
    print_json,
    print_table,
)
from whimbrel.plan.strategies import DEFAULT

if TYPE_CHECKING:
    from whimbrel.controller.client import ControllerClient, OnProgress
    from whimbrel.model.migration import MigrationRecord

migrations = typer.Typer(help="Migrations, running and past.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The migration's id.")]


def register(app: typer.Typer) -> None:
    app.command()(migrate)
    app.add_typer(migrations, name="migration")


def migrate(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="What to move.")],
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="Where to.")],
    strategy: StrategyOption = DEFAULT,
    max_downtime: Annotated[
        str, typer.Option("--max-downtime", metavar="TIME", help="Freeze when it is predicted to be shorter.")
    ] = "",
    deadline: Annotated[str, typer.Option("--deadline", metavar="TIME", help="End the rounds after this time.")] = "",
    bandwidth: Annotated[
        str, typer.Option("--bandwidth", metavar="RATE", help="Use no more than this, like 100mbit.")
    ] = "",
    handover_in: Annotated[
        str,
        typer.Option(
            "--handover-in", metavar="TIME", help="When the user will leave: memory crosses ahead, the freeze waits."
        ),
    ] = "",
    handover_for: Annotated[
        str,
        typer.Option(
            "--handover-for", metavar="TIME", help="How long the user will be away: what is late follows the resume."
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check whether it could be done.")] = False,
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> int:
    """Move a running service to another node. Ctrl-C before the commit undoes it."""
    from whimbrel.cli.progress import telling
    from whimbrel.model.units import parse_duration_ms, parse_rate_bps

    max_downtime_ms = parse_duration_ms(max_downtime) if max_downtime else 0.0
    deadline_ms = parse_duration_ms(deadline) if deadline else 0.0
    bandwidth_bps = parse_rate_bps(bandwidth) if bandwidth else 0.0
    handover_in_ms = parse_duration_ms(handover_in) if handover_in else 0.0
    handover_ms = parse_duration_ms(handover_for) if handover_for else 0.0
    with connect(controller) as client:
        started = client.start_migration(
            service, to, strategy, max_downtime_ms, deadline_ms, bandwidth_bps, dry_run,
            handover_in_ms=handover_in_ms, handover_ms=handover_ms,
        )  # fmt: skip
        with telling(f"{service}: {started.source} -> {started.destination}", stderr=json) as tell:
            record, interrupted = _follow_or_cancel(client, started.id, tell)
    if interrupted:
        if json:
            print_json(record)
        note(_sentence(record))
        raise KeyboardInterrupt
    return _conclude(record, json)


def _follow_or_cancel(client: ControllerClient, migration_id: str, tell: OnProgress) -> tuple[MigrationRecord, bool]:
    """Wait for the end; at Ctrl-C ask for a roll-back and wait for that. The second value: was it
    interrupted?"""
    from whimbrel.model.errors import Conflict

    try:
        return client.follow(migration_id, tell), False
    except KeyboardInterrupt:
        note(f"cancelling migration {migration_id}; Ctrl-C again leaves it running")
        try:
            client.cancel(migration_id)
        except Conflict as error:
            note(str(error))
        return client.follow(migration_id, tell), True


def _conclude(record: MigrationRecord, json: bool) -> int:
    """Show how it ended; the exit code."""
    from whimbrel.model.migration import Outcome

    good = record.outcome in (Outcome.DONE, Outcome.DRY_RUN)
    if json:
        print_json(record)
    elif good:
        print(_sentence(record))
    if not good:
        note(_sentence(record))
    return 0 if good else 1


def _sentence(record: MigrationRecord) -> str:
    from whimbrel.model.migration import Outcome
    from whimbrel.model.units import format_bytes

    if record.outcome is Outcome.DONE:
        return (
            f"{record.service} moved from {record.source} to {record.destination} in {record.total_ms:.0f} "
            "ms, "
            f"frozen for {record.freeze_ms:.1f} ms, {format_bytes(record.bytes_sent)} sent (migration "
            f"{record.id})"
        )
    if record.outcome is Outcome.DRY_RUN:
        return f"{record.service} can move from {record.source} to {record.destination}: nothing was done"
    if record.error_code in ("refused", "bad-input", "conflict"):
        return record.error
    return f"migration {record.id} of {record.service}: {record.outcome}: {record.error or 'no reason given'}"


@migrations.command("ls")
def list_migrations(
    service: Annotated[str, typer.Option("--service", metavar="NAME", help="Only of this service.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="At most so many.")] = 100,
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """Migrations, the newest first."""
    from whimbrel.model.units import format_bytes

    with connect(controller) as client:
        found = client.migrations(service, limit)
    if json:
        print_json(found)
        return
    rows = [
        (
            record.id,
            record.service,
            f"{record.source} -> {record.destination}",
            record.strategy,
            record.outcome.value,
            f"{record.total_ms:.0f} ms",
            f"{record.freeze_ms:.1f} ms",
            format_bytes(record.bytes_sent),
        )
        for record in found
    ]
    bad = ("failed", "rolled-back")
    styles = ["bold red" if record.outcome.value in bad else "" for record in found]
    print_table(("id", "service", "way", "strategy", "outcome", "total", "freeze", "sent"), rows, styles)


@migrations.command("show")
def show(migration_id: Id, controller: ControllerOption = None, json: JsonOption = False) -> None:
    """One migration, whole: phases, rounds, figures."""
    with connect(controller) as client:
        record = client.migration(migration_id)
    if json:
        print_json(record)
        return
    _print_record(record)


@migrations.command("cancel")
def cancel(migration_id: Id, controller: ControllerOption = None, json: JsonOption = False) -> int:
    """Undo a running migration; the source runs on. Refused after the commit."""
    from whimbrel.model.migration import Outcome

    with connect(controller) as client:
        client.cancel(migration_id)
        record = client.follow(migration_id)
    if json:
        print_json(record)
    if record.outcome in (Outcome.CANCELLED, Outcome.ROLLED_BACK):
        if not json:
            print(f"cancelled: {record.service} runs on at {record.source}")
        return 0
    note(f"the migration ended before it could be cancelled: {_sentence(record)}")
    return 1


@migrations.command("resolve")
def resolve(
    migration_id: Id,
    runs_at: Annotated[
        str, typer.Option("--runs-at", metavar="source|destination", help="Where the service runs, as you have seen.")
    ],
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> int:
    """Say where the service runs when the destination is gone for good and the source waits for its word."""
    from whimbrel.model.errors import BadInput

    if runs_at not in ("source", "destination"):
        raise BadInput(f"--runs-at {runs_at!r}: say source or destination")
    with connect(controller) as client:
        client.resolve(migration_id, runs_at=runs_at)
        record = client.follow(migration_id)
    if json:
        print_json(record)
    else:
        print(_sentence(record))
    return 0


def _print_record(record: MigrationRecord) -> None:
    from datetime import UTC, datetime

    from whimbrel.model.units import format_bytes

    started = datetime.fromtimestamp(record.started_unix_s, UTC)
    figures = {
        "outage UDP": None if record.outage_udp_ms is None else f"{record.outage_udp_ms:.1f} ms",
        "outage TCP": None if record.outage_tcp_ms is None else f"{record.outage_tcp_ms:.1f} ms",
        "lost": record.lost,
        "resets": record.resets,
        "state ok": record.state_ok,
    }
    print_fields(
        [
            ("migration", record.id),
            ("service", record.service),
            ("way", f"{record.source} -> {record.destination}"),
            ("strategy", record.strategy),
            *((("asked for", record.asked),) if record.asked not in ("", record.strategy) else ()),
            ("reason", record.reason),
            ("outcome", record.outcome.value),
            ("error", record.error),
            ("workload", record.workload),
            ("started", f"{started:%Y-%m-%d %H:%M:%S} UTC"),
            ("total", f"{record.total_ms:.1f} ms"),
            ("freeze", f"{record.freeze_ms:.1f} ms"),
            *((name, str(value)) for name, value in figures.items() if value is not None),
            ("memory", format_bytes(record.rss_bytes)),
            ("sent", format_bytes(record.bytes_sent)),
            ("for pages of", format_bytes(record.raw_bytes)),
        ]
    )
    if record.phases:
        print()
        rows = [(phase.name, f"{phase.start_ms:.1f}", f"{phase.duration_ms:.1f}") for phase in record.phases]
        print_table(("phase", "start ms", "duration ms"), rows)
    if record.rounds:
        print()
        rows4 = [
            (
                str(turn.n),
                str(turn.dirty_pages),
                str(turn.zero_pages),
                format_bytes(turn.raw_bytes),
                format_bytes(turn.bytes_sent),
                f"{turn.duration_ms:.1f}",
                turn.codec or "-",
            )
            for turn in record.rounds
        ]
        print_table(("round", "dirty pages", "of zeros", "before", "sent", "duration ms", "codec"), rows4)
