"""`plan ls | show | users | planner` and `application add | ls | rm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from whimbrel.cli.common import ControllerOption, JsonOption, connect, note, print_fields, print_json, print_table
from whimbrel.cli.services import absolute, check_environment
from whimbrel.cli.workloads import built

if TYPE_CHECKING:
    from whimbrel.model.decision import Decision, Times

plans = typer.Typer(help="What the planner decides for users, why, and what came of it.")
applications = typer.Typer(help="What users may ask for.")
Name = Annotated[str, typer.Argument(metavar="NAME")]


def register(app: typer.Typer) -> None:
    app.add_typer(plans, name="plan")
    app.add_typer(applications, name="application")


@plans.command("ls")
def list_decisions(
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="Only of this user.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="At most so many.")] = 100,
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """Decisions, the newest first."""
    with connect(controller) as client:
        found = client.decisions(user, limit)
    if json:
        print_json(found)
        return
    rows = [
        (
            one.id,
            one.user,
            _way(one.from_base_station, one.base_station),
            _way(one.from_server, one.server),
            one.order if one.handover_at_unix_s and one.migrates else "-",
            one.state.value,
            _ms(one.measured.interruption_ms if one.measured else None),
            _ms(one.predicted.migration_ms if one.migrates else None),
            _ms(one.measured.migration_ms if one.measured and one.migrates else None),
        )
        for one in found
    ]
    styles = ["bold red" if one.state.value == "failed" else "" for one in found]
    headings = ("id", "user", "handover", "migration", "order", "state", "interruption", "predicted", "measured")
    print_table(headings, rows, styles)


@plans.command("show")
def show(
    decision_id: Annotated[str, typer.Argument(metavar="ID", help="The decision's id.")],
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """One decision, whole: the reason, the times, what was predicted and what was measured."""
    with connect(controller) as client:
        one = client.decision(decision_id)
    if json:
        print_json(one)
        return
    off = "" if one.prediction_error is None else f"{one.prediction_error:.0%}"
    fields = [
        ("decision", one.id),
        ("user", one.user),
        ("service", one.service),
        ("handover", _way(one.from_base_station, one.base_station)),
        ("migration", _way(one.from_server, one.server)),
        ("reason", one.reason),
        ("planner", one.planner),
        ("order", one.order),
        ("state", one.state.value),
        ("error", one.error),
        ("predicted", _times(one.predicted)),
        ("measured", _times(one.measured)),
        ("prediction off by", off),
        ("plan", _distance(one.plan_gap, one.plan_by)),
        ("too late by", f"{one.late_by_ms:.0f} ms" if one.late_by_ms else ""),
        ("record", one.migration),
    ]
    print_fields(fields)
    print()
    print_table(("part", "planned", "began"), _timeline(one))


def _timeline(one: Decision) -> list[tuple[str, str, str]]:
    """Seconds from the decision on."""
    parts = (
        ("pre-migration", one.pre_migration_at_unix_s, 0.0),
        ("migration", one.migration_at_unix_s, one.began_migration_unix_s),
        ("handover", one.handover_at_unix_s, one.began_handover_unix_s),
    )
    return [
        (name, _since(planned, one.made_unix_s), _since(began, one.made_unix_s))
        for name, planned, began in parts
        if planned or began
    ]


@plans.command("users")
def list_users(controller: ControllerOption = None, json: JsonOption = False) -> None:
    """Users as the monitor knows them: where they are, where their services are, and the delay."""
    with connect(controller) as client:
        found = client.users()
    if json:
        print_json(found)
        return
    rows = [
        (
            one.user,
            one.application or "-",
            one.base_station or "-",
            one.server or "-",
            one.state or "-",
            _ms(one.delay_ms),
            one.sla or "-",
            "never" if one.heard_s_ago is None else f"{one.heard_s_ago:.1f} s ago",
            one.problem or "-",
        )
        for one in found
    ]
    headings = ("user", "application", "base station", "server", "service", "delay", "sla", "heard", "problem")
    print_table(headings, rows, ["bold red" if one.sla == "violated" else "" for one in found])


@plans.command("planner")
def planner(
    use: Annotated[str, typer.Option("--use", metavar="NAME", help="Let this planner decide from now on.")] = "",
    order: Annotated[
        str,
        typer.Option(
            "--order", metavar="O", help="coordinated, early, late, uncoordinated; own: what belongs to the planner."
        ),
    ] = "",
    strategy: Annotated[str, typer.Option("--strategy", metavar="S", help="Of migrations that it begins.")] = "",
    pause: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Decide nothing, or decide again.", show_default=False)
    ] = None,
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """Which planner decides and which there are; or choose another. The choice outlives the controller."""
    wanted_order = None if not order else "" if order == "own" else order
    with connect(controller) as client:
        if use or order or strategy or pause is not None:
            view = client.set_planner(use or None, wanted_order, strategy or None, pause)
        else:
            view = client.planner()
    if json:
        print_json(view)
        return
    setting = view.setting
    paused = ", paused" if setting.paused else ""
    note(f"{setting.planner} decides, {view.order}, strategy {setting.strategy}{paused}")
    if (last := view.last) is not None:
        note(
            f"last plan: {last.users} users, {last.moves} moves, {last.left} left where they are, "
            f"{_distance(last.gap, last.by)}, in {last.took_ms:.0f} ms"
        )
    print_table(("planner", "what it does"), list(view.planners.items()))


@plans.command("errors")
def errors(controller: ControllerOption = None, json: JsonOption = False) -> None:
    """How far predictions of T_mig were off: each migration that is remembered, from those before it."""
    with connect(controller) as client:
        found = client.prediction_errors()
    if json:
        print_json(found)
        return
    parts = [("all", found.whole)]
    parts += [(f"strategy {name}", one) for name, one in found.by_strategy.items()]
    parts += [(f"server {name}", one) for name, one in found.by_server.items()]
    rows = [(name, str(one.predictions), _share(one.median), _share(one.after_five)) for name, one in parts]
    print_table(("of", "predictions", "median error", "after five"), rows)
    for line in found.left_out:
        note(line)


@applications.command("add")
def add(
    name: Name,
    image: Annotated[str, typer.Option("--image", metavar="REF", help="An image, or workload:NAME.")],
    port: Annotated[list[str] | None, typer.Option("--port", metavar="N/tcp", help="A port (repeat).")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Repeat for more.")] = None,
    memory_limit: Annotated[str, typer.Option("--memory-limit", metavar="SIZE", help="Of each service.")] = "",
    cpus: Annotated[float, typer.Option("--cpus", metavar="N", help="Processors that a service takes.")] = 0.1,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory that it takes.")] = "64MiB",
    task: Annotated[str, typer.Option("--task", metavar="SIZE", help="What a user sends with each task.")] = "1KB",
    rate: Annotated[float, typer.Option("--rate", metavar="N", help="Tasks a second, until measured.")] = 1.0,
    max_delay: Annotated[
        str, typer.Option("--max-delay", metavar="TIME", help="The agreed end-to-end delay; default: none.")
    ] = "",
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """Offer an application to users, or change what is offered."""
    from whimbrel.model.application import Application
    from whimbrel.model.units import parse_duration_ms, parse_size_bytes

    check_environment(env or ())
    image, recipe = built(image)
    application = Application(
        name=name,
        image=absolute(image),
        ports=tuple(port or (recipe.ports if recipe else ())),
        env=tuple(env or ()),
        memory_limit_bytes=parse_size_bytes(memory_limit) if memory_limit else 0,
        workload=recipe.name if recipe else "",
        cpus=cpus,
        memory_bytes=float(parse_size_bytes(memory)),
        task_bytes=float(parse_size_bytes(task)),
        tasks_per_s=rate,
        max_delay_ms=parse_duration_ms(max_delay) if max_delay else 0.0,
    )
    with connect(controller) as client:
        offered = client.offer(application)
    if json:
        print_json(offered)
    else:
        print(f"{name} is offered")


@applications.command("ls")
def list_applications(controller: ControllerOption = None, json: JsonOption = False) -> None:
    """What is offered."""
    from whimbrel.model.units import format_bytes

    with connect(controller) as client:
        found = client.applications()
    if json:
        print_json(found)
        return
    rows = [
        (
            one.name,
            one.workload or one.image,
            f"{one.cpus:g}",
            format_bytes(int(one.memory_bytes)),
            format_bytes(int(one.task_bytes)),
            _ms(one.max_delay_ms or None),
        )
        for one in found
    ]
    print_table(("application", "image", "cpus", "memory", "task", "max delay"), rows)


@applications.command("rm")
def remove(name: Name, controller: ControllerOption = None) -> None:
    """Offer it no more; refused while somebody uses it."""
    with connect(controller) as client:
        client.withdraw(name)
    print(f"{name} is offered no more")


def _way(source: str, target: str) -> str:
    return f"{source} -> {target}" if source != target else f"stays at {target}" if target else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _distance(gap: float | None, by: str) -> str:
    """How far from optimal a plan may be."""
    if not by:
        return ""
    return f"by {by}, nothing proven" if gap is None else f"by {by}, at most {gap:.2%} from optimal"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _times(times: Times | None) -> str:
    if times is None:
        return ""
    parts = {
        "pre-migration": times.pre_migration_ms,
        "migration": times.migration_ms,
        "handover": times.handover_ms,
        "interruption": times.interruption_ms,
    }
    return ", ".join(f"{name} {value:.0f} ms" for name, value in parts.items() if value)


def _since(unix_s: float, begin_unix_s: float) -> str:
    return f"{unix_s - begin_unix_s:+.2f} s" if unix_s else "-"
