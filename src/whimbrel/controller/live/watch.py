"""Hears what the controller's parts do, and makes the news of it: the log at once, users at most four times a second,
nodes and services every 2 s. While nobody listens only the log is kept, and no agent is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import structlog

from whimbrel import __version__
from whimbrel.controller.config import ControllerConfig
from whimbrel.controller.live import marks, ways
from whimbrel.controller.live.news import News
from whimbrel.controller.live.samples import Samples
from whimbrel.controller.live.views import (
    Kind,
    Level,
    LogEntry,
    MigrationNews,
    NodeMark,
    RegionSettings,
    RegionView,
    ServiceMark,
    UserMark,
    UserSamples,
)
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.planning.loop import Planning
from whimbrel.controller.planning.users import UserState
from whimbrel.controller.problems import Unknown
from whimbrel.controller.region import Region
from whimbrel.controller.services import Services
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.model.radio import HandoverRecord, UserEvent, UserNote
from whimbrel.plan.strategies import names

USERS_EVERY_S = 0.25
LOOK_EVERY_S = 2.0
FRESH_S = 1.0
"""A picture that is asked for is no older."""
PATIENCE_S = 0.5
"""So long a picture waits for the nodes, if there is an older one."""
LONG_AGO_S = -1e9
DECISIONS = 20

log = structlog.get_logger()


@dataclass(frozen=True)
class _Seen:
    nodes: tuple[NodeMark, ...] = ()
    services: tuple[ServiceMark, ...] = ()
    at_s: float = LONG_AGO_S


class Watch:
    """`news` for whoever listens, `picture` for whoever asks once."""

    def __init__(
        self, config: ControllerConfig, region: Region, services: Services, migrations: Migrations, planning: Planning
    ) -> None:
        self.news = News()
        self._config, self._region, self._services = config, region, services
        self._migrations, self._planning = migrations, planning
        self._cells = marks.by_gateway(config.cells)
        self._seen = _Seen()
        self._looking: asyncio.Task[None] | None = None
        self._staled = 0
        self._told = _Seen()
        self._changed: set[str] = set()  # users with something new since they were last told
        self._there: dict[str, str] = {}  # users that are shown, and where each is served
        self._marks: dict[str, tuple[float, UserMark]] = {}  # with when its user was heard
        self._ways: dict[str, ways.Way] = {}
        self._samples: dict[str, Samples] = {}
        self._phases: dict[str, str] = {}  # of migrations that run
        self._tasks: list[asyncio.Task[None]] = []
        region.listeners.append(self._on_node)
        services.listeners.append(self._on_service)
        migrations.listeners.append(self._on_migration)
        planning.moves.listeners.append(self._on_decision)
        planning.users.listeners.append(self._on_user)
        planning.complaint_listeners.append(self._on_complaint)

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._keep(USERS_EVERY_S, self._tell_users), name="users' news"),
            asyncio.create_task(self._keep(LOOK_EVERY_S, self._tell_nodes), name="nodes' news"),
        ]

    async def close(self) -> None:
        self.news.hang_up()
        tasks = [*self._tasks, *([self._looking] if self._looking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the picture ----------------------------------------------------------------------------------------
    async def picture(self) -> RegionView:
        """Raises Unreachable when the database is away."""
        seen, decisions = await asyncio.gather(self._look(FRESH_S), self._planning.decisions(DECISIONS))
        setting = self._planning.setting
        return RegionView(
            unix_s=time.time(),
            nodes=seen.nodes,
            base_stations=tuple(marks.station_mark(cell) for cell in self._config.cells),
            users=tuple(self._users()),
            ways=ways.told(self._ways),
            services=seen.services,
            migrations=tuple(self._migrations.live()),
            decisions=tuple(decisions),
            settings=RegionSettings(
                planner=setting.planner, paused=setting.paused, strategies=tuple(names()), version=__version__
            ),
        )

    def samples(self, user: str) -> UserSamples:
        """None of a user of whom only the network tells. Raises Unknown."""
        kept = self._samples.get(user)
        if kept is None and self._planning.users.get(user) is None:
            raise Unknown(f"no user {user!r} reports: see `whimbrel plan users`")
        return UserSamples(user=user, samples=kept.told() if kept is not None else ())

    def _users(self) -> list[UserMark]:
        """Of each user what was made of its last report, if it has reported since: of a thousand few have."""
        present = self._planning.users.present()
        return [self._mark(name, state) for name, state in sorted(present.items(), key=itemgetter(0))]

    def _mark(self, name: str, state: UserState) -> UserMark:
        session = self._planning.deployment.sessions.get(name)
        known = self._marks.get(name)
        service = session.service if session is not None else ""
        if known is None or known[0] != state.heard_s or known[1].service != service:
            known = self._marks[name] = (
                state.heard_s, marks.user_mark(state, session, time.monotonic(), time.time())
            )  # fmt: skip
        return known[1]

    async def _look(self, most_age_s: float) -> _Seen:
        """What nodes and services say; of several who ask at the same time one does it for all. A node that does not
        answer keeps nobody waiting for long: what was seen last is told, and what it says is seen when it comes."""
        if time.monotonic() - self._seen.at_s > most_age_s:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look_now(), name="a look at the region")
            ended, _ = await asyncio.wait({self._looking}, timeout=PATIENCE_S if self._seen.nodes else None)
            for task in ended:
                task.result()
        return self._seen

    async def _look_now(self) -> None:
        staled = self._staled
        views, listed = await asyncio.gather(self._region.views(), self._services.list())
        self._seen = _Seen(
            tuple(marks.node_mark(view, self._config.places.get(view.name)) for view in views),
            tuple(marks.service_mark(status) for status in listed.services),
            time.monotonic() if staled == self._staled else LONG_AGO_S,
        )

    # --- now and then ---------------------------------------------------------------------------------------
    async def _keep(self, every_s: float, work: Callable[[], Any]) -> None:
        while True:
            try:
                await work()
            except WhimbrelError as error:
                log.warning("listeners are told nothing new", error=str(error))
            except Exception as error:  # a mistake of ours must not end the loop
                log.exception("news met an error that nobody expected", exc_info=error)
            await asyncio.sleep(every_s)

    async def _tell_users(self) -> None:
        present = self._planning.users.present()
        gone = [name for name in self._there if name not in present]
        for name in gone:
            cell = self._there.pop(name)
            self._marks.pop(name, None)
            self._ways.pop(name, None)
            self._samples.pop(name, None)
            self._log(Kind.USER, f"user {name} reports no more", Level.WARNING, user=name, cell=cell)
        if gone:
            self.news.publish("gone", gone)
        changed, self._changed = self._changed, set()
        if changed and self.news.listeners:
            told = [self._mark(name, present[name]) for name in sorted(changed) if name in present]
            if told:
                self.news.publish("users", told)

    async def _tell_nodes(self) -> None:
        if not self.news.listeners:
            return
        seen = await self._look(FRESH_S)
        if seen.nodes != self._told.nodes:
            self.news.publish("nodes", seen.nodes)
        if seen.services != self._told.services:
            self.news.publish("services", seen.services)
        self._told = seen

    # --- what the parts tell --------------------------------------------------------------------------------
    def _on_node(self, name: str, problem: str) -> None:
        text = f"node {name} is lost: {problem}" if problem else f"node {name} is connected"
        self._log(Kind.NODE, text, Level.ERROR if problem else Level.INFO, node=name)
        self._stale()

    def _on_service(self, name: str, node: str, what: str) -> None:
        self._log(Kind.SERVICE, f"service {name}: {what} on {node}", service=name, node=node)
        self._stale()

    def _on_migration(self, record: MigrationRecord, progress: Progress | None) -> None:
        what = f"migration of {record.service} from {record.source} to {record.destination}"

        def say(text: str, level: Level = Level.INFO) -> None:
            self._log(
                Kind.MIGRATION, f"{what}{text}", level, user=self._user_of(record.service), service=record.service,
                node=record.destination,
            )  # fmt: skip

        if progress is not None:
            self.news.publish("migration", MigrationNews(id=record.id, progress=progress))
            if self._phases.get(record.id) != progress.phase:
                self._phases[record.id] = progress.phase
                detail = f" ({progress.detail})" if progress.detail else ""
                say(f": {progress.phase}{detail}")
            return
        self.news.publish("migration", MigrationNews(record=record))
        self._stale()
        if record.outcome is Outcome.RUNNING:
            say(f" begins ({record.strategy})")
            return
        self._phases.pop(record.id, None)
        if record.outcome is Outcome.DONE:
            say(f" is done: frozen for {record.freeze_ms:.0f} ms")
        elif record.outcome in (Outcome.DRY_RUN, Outcome.CANCELLED):
            say(f": {record.outcome.value}")
        else:
            say(f": {record.outcome.value}: {record.error}", Level.ERROR)

    def _on_decision(self, decision: Decision) -> None:
        self.news.publish("decision", decision)
        whom = f"user {decision.user}"
        if decision.state is DecisionState.RUNNING:
            text, level = f"{whom}: {decision.reason}", Level.INFO
        else:
            level = Level.ERROR if decision.state is DecisionState.FAILED else Level.INFO
            text = f"{whom}: decision {decision.state.value}" + (f": {decision.error}" if decision.error else "")
        self._log(Kind.PLANNER, text, level, user=decision.user, cell=decision.base_station,
                  service=decision.service, node=decision.server)  # fmt: skip

    def _on_user(self, event: UserEvent) -> None:
        name = event.user
        self._changed.add(name)
        state = self._planning.users.get(name)
        report = state.report if state is not None else None
        if isinstance(event, HandoverRecord):
            text = f"user {name}: handover from {event.source} to {event.target}"
            if event.error:
                self._log(Kind.HANDOVER, f"{text} failed: {event.error}", Level.ERROR, user=name, cell=event.source)
            else:
                text += f" in {event.interruption_ms:.0f} ms ({event.reason})"
                self._log(Kind.HANDOVER, text, user=name, cell=event.target)
        elif isinstance(event, UserNote):
            self._log(Kind.USER, f"user {name}: {event.text}", user=name)
        elif report is not None:
            if name not in self._there:
                self._log(Kind.USER, f"user {name} reports", user=name, cell=report.serving)
            elif self._there[name] and not report.serving:
                self._log(Kind.USER, f"user {name} is out of coverage", Level.WARNING, user=name)
            self._there[name] = report.serving
            if report.x_m is not None and report.y_m is not None:
                self._ways.setdefault(name, ways.Way()).go(report.x_m, report.y_m)
            assert state is not None
            self._samples.setdefault(name, Samples()).take(time.time(), state.delay_ms, marks.heard(report))

    def _on_complaint(self, text: str, facts: dict[str, Any]) -> None:
        user = facts.get("user")
        if isinstance(user, str) and "vanished" not in text:  # that is told by itself
            self._log(Kind.PLANNER, f"user {user}: {text}", Level.WARNING, user=user)
        elif not isinstance(user, str):
            self._log(Kind.PLANNER, text, Level.WARNING)

    def _stale(self) -> None:
        """What was seen of nodes and services is not so any more."""
        self._seen = _Seen(self._seen.nodes, self._seen.services)
        self._staled += 1

    def _log(
        self, kind: Kind, text: str, level: Level = Level.INFO, user: str = "", cell: str = "", service: str = "",
        node: str = "",
    ) -> None:  # fmt: skip
        """Of a user also where it is."""
        state = self._planning.users.get(user) if user else None
        report = state.report if state is not None else None
        cell = cell or (report.serving if report is not None else "")
        self.news.log(
            LogEntry(
                unix_s=time.time(),
                level=level,
                kind=kind,
                text=text,
                user=user,
                cell=cell,
                zone=self._cells[cell].zone if cell in self._cells else "",
                x_m=marks.known(report.x_m) if report is not None else None,
                y_m=marks.known(report.y_m) if report is not None else None,
                service=service or self._service_of(user),
                node=node,
            )
        )

    def _user_of(self, service: str) -> str:
        """Whom it was deployed for; "" for one that nobody asked the planner for."""
        sessions = self._planning.deployment.sessions.values()
        return next((session.user for session in sessions if session.service == service), "")

    def _service_of(self, user: str) -> str:
        session = self._planning.deployment.sessions.get(user) if user else None
        return session.service if session is not None else ""
