"""The planner's loop: observe, plan, decide, again and again; at once when a user's radio calls for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from whimbrel.controller.handovers import port_of
from whimbrel.controller.migrations import Migrations, new_id
from whimbrel.controller.planning.book import PlanBook
from whimbrel.controller.planning.clock import JumpWatch
from whimbrel.controller.planning.complaints import Complaints
from whimbrel.controller.planning.decide import Wish, begins_at_s, decision_of, timing_of
from whimbrel.controller.planning.deploy import Deployment
from whimbrel.controller.planning.due import due_of, patience_s
from whimbrel.controller.planning.experience import Experience, experience
from whimbrel.controller.planning.foresee import Foresight
from whimbrel.controller.planning.monitor import (
    MOST_USERS,
    SLA_REPORTS,
    Person,
    Region,
    check_demand,
    has_power,
    observe,
    region_of,
    violates,
)  # fmt: skip
from whimbrel.controller.planning.moves import Moves, failed
from whimbrel.controller.planning.probes import Probes
from whimbrel.controller.planning.settings import PlanningConfig, check_setting
from whimbrel.controller.planning.taken import Sight, held, taken
from whimbrel.controller.planning.users import Users, UserState
from whimbrel.controller.problems import Unknown
from whimbrel.controller.region import Region as Nodes
from whimbrel.controller.services import Services
from whimbrel.model.application import Application, Session, SessionState
from whimbrel.model.decision import Decision, PlannerSetting, UserStatus
from whimbrel.model.edge import BaseStation, Observation
from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.model.history import PredictionErrors
from whimbrel.model.placement import Plan, PlanFigures, figures_of
from whimbrel.model.radio import Orders, UserEvent, UserReport
from whimbrel.model.service import ServiceState, ServiceStatus
from whimbrel.plan.placement.problem import Solve
from whimbrel.plan.planners import Planner, planner_of
from whimbrel.plan.strategies import AUTO
from whimbrel.plan.timing import Order

WATCH_S = 2.0
"""Nodes and services are asked so often: round trips and capacity change slowly, and every answer costs the agents."""
LEAST_BETWEEN_S = 0.1
HISTORY = 400
RETRY_S = 10.0
MOST_RETRY_S = 300.0

log = structlog.get_logger()


class Planning:
    """Monitor, Planner and Deployment of a running controller."""

    def __init__(
        self, config: PlanningConfig, nodes: Nodes, services: Services, migrations: Migrations, book: PlanBook
    ) -> None:
        self._config, self._nodes, self._services, self._migrations = config, nodes, services, migrations
        self._book = book
        self._wake = asyncio.Event()
        self.complaint_listeners: list[Callable[[str, dict[str, Any]], None]] = []
        self.users = Users(self._wake.set, self._complain)
        self.handovers = port_of(config.handovers).make(self._take, config.handover_settings)
        self.deployment = Deployment(services, self.users, book, self._place)
        self.moves = Moves(migrations, self.users, self.handovers, book, self._over)
        self.setting = config.setting
        self._stations = {station.name: station for station in config.base_stations}
        self._foresight = Foresight(self._station)
        self._sight = Sight()
        self._experience = Experience()
        self._failures: dict[str, tuple[int, float]] = {}  # by user: how many on end, and when there may be another
        self._own_wish: dict[str, str] = {}  # by user: the last decision that the radio had not asked for
        self.last_plan: PlanFigures | None = None
        self._problems: dict[str, str] = {}
        self._complaints = Complaints(self._complain)
        self._tasks: list[asyncio.Task[None]] = []
        self._looking = asyncio.Lock()
        self._placing = asyncio.Lock()  # held while room is given away, to new users and to moves
        self._probes = Probes(services)
        self._clock = JumpWatch()

    async def start(self) -> None:
        await self.deployment.load()
        chosen = await asyncio.to_thread(self._book.setting)
        self.setting = chosen if chosen is not None else self._config.setting
        await self.moves.resume()
        await self.handovers.start()
        self._tasks = [
            asyncio.create_task(self._keep_watching(), name="monitor"),
            asyncio.create_task(self._keep_planning(), name="planner"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._probes.close()
        await self.moves.close()
        await self.handovers.close()

    # --- users ----------------------------------------------------------------------------------------------
    def take(self, user: str, event: UserEvent) -> Orders:
        """An event that a user tells; the answer is what it is to do. Raises BadInput."""
        self.users.take(user, event)
        self._agreed(event)
        return self.handovers.answer(user)

    async def offer(self, application: Application) -> Application:
        """See `Deployment.offer`. Raises BadInput for one whose service no server could carry, though it were empty."""
        await self._safely("the monitor", self.look())
        check_demand(region_of(self._sight.nodes, self._stations), application)
        return await self.deployment.offer(application)

    async def discover(self, user: str, application: str) -> Session:
        """See `Deployment.discover`."""
        session = await self.deployment.discover(user, application)
        await self._safely("the monitor", self.look())  # a service that is new is planned for from now on
        return session

    def _complain(self, text: str, facts: dict[str, Any]) -> None:
        for listener in self.complaint_listeners:
            listener(text, facts)

    def _take(self, event: UserEvent) -> None:
        if isinstance(event, UserReport):
            event = self._foresight.seen(event, time.monotonic())
        self.users.take(event.user, event)
        self._agreed(event)

    def _agreed(self, event: UserEvent) -> None:
        """The SLA check, of each report that tells of a delay. A new violation is a reason to plan at once."""
        session, state = self.deployment.sessions.get(event.user), self.users.get(event.user)
        application = self.deployment.applications.get(session.application) if session is not None else None
        if isinstance(event, UserReport) and event.delay is not None and state is not None and application is not None:
            before = state.over_limit
            self._check_sla(state, application)
            if before < SLA_REPORTS <= state.over_limit:
                self._wake.set()

    def _station(self, name: str) -> BaseStation:
        return self._stations.get(name) or BaseStation(name=name, max_users=MOST_USERS)

    def statuses(self) -> list[UserStatus]:
        """All users, those with a service first, by name."""
        names = {*self.deployment.sessions, *(state.name for state in self.users.all())}
        return [self.status(name) for name in sorted(names)]

    def status(self, user: str) -> UserStatus:
        session, state = self.deployment.sessions.get(user), self.users.get(user)
        application = self.deployment.applications.get(session.application) if session is not None else None
        report = state.report if state is not None else None
        most_ms = application.max_delay_ms if application is not None else 0.0
        sla = ("violated" if state is not None and state.over_limit >= SLA_REPORTS else "kept") if most_ms else ""
        return UserStatus(
            user=user,
            application=session.application if session is not None else "",
            service=session.service if session is not None else "",
            state=session.state.value if session is not None else "",
            server=session.server if session is not None else "",
            base_station=report.serving if report is not None else "",
            link=report.state.value if report is not None else "",
            x_m=report.x_m if report is not None else None,
            y_m=report.y_m if report is not None else None,
            delay_ms=state.delay_ms if state is not None else None,
            max_delay_ms=most_ms,
            sla=sla,
            heard_s_ago=round(time.monotonic() - state.heard_s, 3) if report is not None and state else None,
            problem=self._problems.get(user, ""),
        )

    # --- what is decided ------------------------------------------------------------------------------------
    async def set(self, setting: PlannerSetting) -> PlannerSetting:
        """From now on this planner decides, also after a restart. Raises BadInput for what there is not."""
        check_setting(setting)
        await asyncio.to_thread(self._book.put_setting, setting)
        self.setting = setting
        self._wake.set()
        return setting

    async def decisions(self, limit: int, user: str = "", before: str = "") -> list[Decision]:
        """The newest first. Raises Unknown when there is no decision `before`."""
        if before and await self.decision(before) is None:
            raise Unknown(f"there is no decision {before!r} to go on from: ask again without a cursor")
        return await asyncio.to_thread(self._book.decisions, limit, user, before)

    async def decision(self, decision_id: str) -> Decision | None:
        return await asyncio.to_thread(self._book.decision, decision_id)

    async def observation(self) -> Observation | None:
        """What the planner sees now; None while no server or no base station answers."""
        await self.look()
        return self._observe(planner_of(self.setting.planner), self._people(planner_of(self.setting.planner)))

    async def prediction_errors(self) -> PredictionErrors:
        """How far predictions of T_mig were off: each migration that is remembered, from those before it."""
        await self.look()
        return await asyncio.to_thread(self._experience.prediction_errors)

    async def plan(self) -> Plan | None:
        """What the planner would do now."""
        seen = await self.observation()
        return await self._solve(planner_of(self.setting.planner), seen) if seen is not None else None

    # --- the loop -------------------------------------------------------------------------------------------
    async def _keep_watching(self) -> None:
        while True:
            await self._safely("the monitor", self.look())
            await self._safely("deployment", self.deployment.settle())
            await asyncio.sleep(WATCH_S if self.deployment.sessions else 5 * WATCH_S)

    async def _keep_planning(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.every_s):
                    await self._wake.wait()
            self._wake.clear()
            await self._safely("the planner", self._turn())
            await asyncio.sleep(LEAST_BETWEEN_S)

    async def _safely(self, who: str, work: Any) -> None:
        try:
            await work
            self._complaints.over(who)
        except WhimbrelError as error:
            self._complaints.tell(who, f"{who} cannot go on: {error}")
        except Exception as error:  # a mistake of ours must not end the loop
            if self._complaints.tell(who, f"{who} met an error that nobody expected: {type(error).__name__}: {error}"):
                log.exception("where it was", exc_info=error)

    async def look(self) -> None:
        """Ask nodes and services, and learn from the migrations that were."""
        async with self._looking:
            ready = {user for user, one in self.deployment.sessions.items() if one.state is SessionState.READY}
            views, listed = await asyncio.gather(self._nodes.views(), self._services.list())
            records = await self._migrations.newest(HISTORY)
            self._sight = Sight(tuple(views), listed.services, listed.unreachable, frozenset(ready))
            powers = {node.name: node.resources.computing_power for node in views
                      if node.resources is not None and has_power(node.resources)}  # fmt: skip
            up = [node for node in views if node.up]
            decisions = await asyncio.to_thread(self._book.decisions, HISTORY)
            self._experience = await asyncio.to_thread(
                experience, records[::-1], decisions[::-1], powers, up, strategy=self.setting.strategy
            )
            self.moves.freeze_lags_s = self._experience.freeze_lags_s
            for text in self._experience.complaints:
                self._complaints.tell(("history", text), text)

    async def _turn(self) -> None:
        if set_by_s := self._clock.jumped_s():
            text = "the controller's clock was set: what is under way goes by the time that has passed"
            self._complaints.tell(("clock", round(time.monotonic())), text, set_by_s=round(set_by_s, 1))
        planner = planner_of(self.setting.planner)
        people = self._people(planner)
        for person in people:
            user = person.session.user
            move = self.moves.running.get(user)
            # what no forecast set off is not undone for want of one
            if person.going is not None and move is not None and self._own_wish.get(user) != move.decision.id:
                await self.moves.reconsider(user, self._due(user, ahead=True))
        if self.setting.paused:
            return
        async with self._placing:
            await self._plan_anew(planner)

    async def _plan_anew(self, planner: Planner) -> None:
        people = self._people(planner)
        if not any(person.going is None for person in people):
            return
        seen = self._observe(planner, people)
        if seen is None:
            return
        plan = await self._solve(planner, seen)
        for left in plan.left:
            self._say(left.user, left.why)
        by_user = {person.session.user: person for person in people}
        for one in plan.assignments:
            person = by_user[one.user]
            if person.going is None and one.user not in self.moves.running:
                self._problems.pop(one.user, None)
                self._complaints.over(("user", one.user))
                due = person.due
                wish = Wish(
                    session=person.session,
                    assignment=one,
                    serving=person.report.serving,
                    due=due,
                    preparation_ms=self._preparation_ms(seen, one.from_server, one.server) if one.migrates else 0.0,
                    handover_ms=person.handover_ms,
                    patience_s=patience_s(person.report),
                )
                await self._decide(planner, wish)

    async def _decide(self, planner: Planner, wish: Wish) -> None:
        user = wish.session.user
        if not wish.migrates and not wish.hands_over:
            if wish.assignment.hands_over:  # it has moved on, and its service stays: from now on that is its place
                await self._placed(wish.session, wish.assignment.base_station)
            return
        if wish.migrates and time.monotonic() < self._failures.get(user, (0, 0.0))[1]:
            wish = wish.without_migration()  # its service is left alone for a while; its radio cannot wait
            if not wish.hands_over:
                return
        now_s = time.time()
        timing = timing_of(wish, self.order_of(planner), now_s)
        if begins_at_s(wish, timing) > now_s + self._config.every_s + LEAST_BETWEEN_S:
            return  # there is time: a later plan knows more
        decision = decision_of(
            wish, timing, decision_id=new_id(now_s), planner=planner.name, now_unix_s=now_s, plan=self.last_plan
        )
        if wish.due is None:
            self._own_wish[user] = decision.id
        await self.moves.begin(
            decision,
            strategy=self.setting.strategy,
            wanted_handover_unix_s=now_s + (wish.due.in_s if wish.due is not None else 0.0),
            latest_handover_unix_s=now_s + wish.latest_s,
        )

    async def _over(self, decision: Decision) -> None:
        """A decision was carried out, or was not."""
        if decision.migrates and failed(decision):
            count = self._failures.get(decision.user, (0, 0.0))[0] + 1
            self._failures[decision.user] = (count, time.monotonic() + min(MOST_RETRY_S, RETRY_S * 2 ** (count - 1)))
        elif decision.migrates:  # a handover alone says nothing of its service
            self._failures.pop(decision.user, None)
            self.users.moved(decision.user)
        await self._safely("the monitor", self.look())
        self._own_wish.pop(decision.user, None)
        session = self.deployment.sessions.get(decision.user)
        if session is not None:
            await self._safely("the database", self._placed(session, decision.base_station))
        self._wake.set()

    async def _placed(self, session: Session, base_station: str) -> None:
        server = next((one.node for one in self._sight.services if one.spec.name == session.service), session.server)
        await self.deployment.put(msgspec.structs.replace(session, base_station=base_station, server=server))

    def order_of(self, planner: Planner) -> Order:
        if self.setting.order:
            return Order(self.setting.order)
        return Order.UNCOORDINATED if planner.follows_handover else Order.COORDINATED

    # --- the observation ------------------------------------------------------------------------------------
    def _people(self, planner: Planner) -> list[Person]:
        """Users that are there and whose service runs."""
        found = []
        services = {status.spec.name: status for status in self._sight.services}
        for user, state in self.users.present().items():
            session = self.deployment.sessions.get(user)
            application = self.deployment.applications.get(session.application) if session is not None else None
            if session is None or application is None or session.state is not SessionState.READY:
                continue
            status = services.get(session.service)
            move = self.moves.running.get(user)
            if status is None or (move is None and status.state is not ServiceState.RUNNING):
                self._say(user, f"its service {session.service} runs nowhere that can be seen")
                continue
            due = None if move is not None else self._due(user, ahead=not planner.follows_handover)
            placed = session if planner.follows_handover else msgspec.structs.replace(session, base_station="")
            found.append(self._person(state, placed, application, status, due, move.decision if move else None))
        return found

    def _person(
        self, state: UserState, session: Session, application: Application, status: ServiceStatus | None, due: Any,
        going: Decision | None,
    ) -> Person:  # fmt: skip
        assert state.report is not None
        processing = list(state.processing_ms)
        return Person(
            session=session,
            application=application,
            report=state.report,
            server=status.node if status is not None else "",
            due=due,
            going=(going.base_station, going.server) if going is not None else None,
            memory_bytes=float(status.rss_bytes) if status is not None else 0.0,
            delta_bytes=self._delta_bytes(session.service, settled=status is not None and going is None),
            processing_ms=sum(processing) / len(processing) if processing else None,
            tasks_per_s=state.tasks_per_s(time.monotonic()),
            handover_ms=state.handover_ms,
            moved_bytes=self._experience.moved_bytes(session.service),
            violated=state.over_limit >= SLA_REPORTS,
        )  # fmt: skip

    def _observe(self, planner: Planner, people: Sequence[Person]) -> Observation | None:
        seen, left = observe(self._region(people), people, self._experience.speeds, time.time())
        for user, why in left.items():
            self._say(user, why)
        return seen

    def _region(self, people: Sequence[Person]) -> Region:
        """The servers as they are to these people; who cannot be planned with is named."""
        others = taken(self._sight, people, self.deployment.sessions.values(), self.deployment.applications)
        region = region_of(self._sight.nodes, self._stations, others, self._experience.carried_bps, held(people))
        unusable = dict(region.unusable)
        for node in self._sight.nodes:
            if why := unusable.get(node.name, ""):
                text = "a server is not planned with: what it tells of itself cannot be"
                self._complaints.tell(("server", node.name), text, node=node.name, why=why)
            else:
                self._complaints.over(("server", node.name))
        return region

    async def _place(self, session: Session, application: Application) -> Session:
        """See `deploy.Place`. Raises Refused."""
        await self.look()
        async with self._placing:
            server, base_station = await self._room_for(session, application)
            return await self.deployment.put(msgspec.structs.replace(session, server=server, base_station=base_station))

    async def _room_for(self, session: Session, application: Application) -> tuple[str, str]:
        planner = planner_of(self.setting.planner)
        state = self.users.get(session.user)
        if state is None or state.report is None:
            raise Refused(f"user {session.user} has gone")
        newcomer = self._person(state, session, application, None, None, None)
        people = [*self._people(planner), newcomer]
        seen, left = observe(self._region(people), people, self._experience.speeds, time.time())
        why = left.get(session.user, "")
        if seen is not None and not why:
            plan = await self._solve(planner, seen)
            for one in plan.assignments:
                if one.user == session.user:
                    return one.server, state.report.serving
            why = next((one.why for one in plan.left if one.user == session.user), "no place was found")
        raise Refused(f"user {session.user} gets no {application.name}: {why or 'no server answers'}")

    async def _solve(self, planner: Planner, seen: Observation) -> Plan:
        def work() -> Plan:
            from whimbrel.solvers.chosen import within  # here: SciPy would keep every start of a controller waiting

            solve: Solve = within(self._config.solver, self._config.solve_s, began_s=begun_s)
            return planner.plan(seen, policy, solve)

        begun_s = time.monotonic()
        overlaps = self.order_of(planner) is Order.COORDINATED
        policy = msgspec.structs.replace(
            self._config.policy, overlaps=overlaps, follows=overlaps and self.setting.strategy == AUTO
        )
        plan = await asyncio.to_thread(work)
        took_ms = (time.monotonic() - begun_s) * 1e3
        self.last_plan = figures = figures_of(plan, made_unix_s=time.time(), took_ms=took_ms)
        tell = log.info if figures.moves else log.debug
        tell(
            "planned", planner=figures.planner, by=figures.by, users=figures.users, moves=figures.moves,
            left=figures.left, gap=figures.gap, took_ms=figures.took_ms,
        )  # fmt: skip
        return plan

    def _due(self, user: str, *, ahead: bool) -> Any:
        state = self.users.get(user)
        if state is None or state.report is None:
            return None
        return due_of(state.report, time.monotonic() - state.heard_s, ahead=ahead)

    def _preparation_ms(self, seen: Observation, source: str, destination: str) -> float:
        pair = {source, destination}
        trips = [link.rtt_ms for link in seen.links if {link.a, link.b} == pair]
        return self._experience.preparation_ms(source, destination, trips[0] if trips else 0.0)

    def _delta_bytes(self, service: str, *, settled: bool) -> float | None:
        """As it was when it moved; before that, what a probe found, of one that runs and does not move just now
        (`settled`)."""
        left_bytes = self._experience.left_bytes(service)
        if left_bytes is not None:
            self._probes.forget(service)
            return left_bytes
        return self._probes.delta_bytes(service) if settled else None

    def _check_sla(self, state: UserState, application: Application) -> None:
        late = violates(state.delay_ms, application.max_delay_ms)
        state.over_limit = state.over_limit + 1 if late else 0
        key = ("sla", state.name)
        if state.over_limit >= SLA_REPORTS:
            self._complaints.tell(
                key, "the agreed delay is not kept", user=state.name, most_ms=application.max_delay_ms,
            )  # fmt: skip
        elif not late:
            self._complaints.over(key)

    def _say(self, user: str, why: str) -> None:
        """Once while it lasts, and for whoever asks."""
        self._problems[user] = why
        self._complaints.tell(("user", user), f"a user is not planned for: {why}", user=user)
