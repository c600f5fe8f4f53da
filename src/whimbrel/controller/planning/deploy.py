"""Deployment (`coordinated`, III): a user asks for an application, the planner chooses a server, the service is run
there, and the user is told its address."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from msgspec.structs import replace

from whimbrel.controller.planning.book import PlanBook
from whimbrel.controller.planning.users import Users
from whimbrel.controller.problems import Unknown
from whimbrel.controller.services import Services
from whimbrel.model.application import Application, Session, SessionState
from whimbrel.model.errors import BadInput, Conflict, Refused, Unreachable, WhimbrelError
from whimbrel.model.service import ServiceSpec, ServiceState, ServiceStatus

REPORT_WAIT_S = 5.0
DOUBT_S = 30.0
"""So long after a deployment of which no answer came its service may still appear."""
LONGEST_NAME = 40

log = structlog.get_logger()
Place = Callable[[Session, Application], Awaitable[Session]]
"""Gives a new session the server that its service is to run on and the base station it was chosen for, and puts it
among the others: from then on that room is taken."""


def service_name(application: str, user: str) -> str:
    """Of the service that a user gets; what is too long is cut and told apart by a sum."""
    name = f"{application}-{user}"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{re.sub(r'-+$', '', name[: LONGEST_NAME - 9])}-{zlib.crc32(name.encode()):08x}"


class Deployment:
    """Sessions by user, kept in the database; the agents are the truth about the services themselves."""

    def __init__(self, services: Services, users: Users, book: PlanBook, place: Place) -> None:
        self._services, self._users, self._book, self._place = services, users, book, place
        self.sessions: dict[str, Session] = {}
        self.applications: dict[str, Application] = {}
        self._busy: dict[str, asyncio.Lock] = {}
        self._doubted_s: dict[str, float] = {}  # by user: since when nobody knows whether its service was started

    async def load(self) -> None:
        applications = await asyncio.to_thread(self._book.applications)
        self.applications = {one.name: one for one in applications}
        self.sessions = {one.user: one for one in await asyncio.to_thread(self._book.sessions)}

    async def offer(self, application: Application) -> Application:
        """From now on users may ask for it; those who have it keep what they have."""
        await asyncio.to_thread(self._book.put_application, application)
        self.applications[application.name] = application
        return application

    async def withdraw(self, name: str) -> None:
        """Raises Unknown, Conflict while somebody uses it."""
        self.application(name)
        users = [one.user for one in self.sessions.values() if one.application == name]
        if users:
            raise Conflict(f"application {name} is used by {', '.join(users[:5])}: remove them first")
        await asyncio.to_thread(self._book.remove_application, name)
        del self.applications[name]

    def application(self, name: str) -> Application:
        if name not in self.applications:
            known = ", ".join(sorted(self.applications)) or "none"
            raise Unknown(f"there is no application {name!r}: offered are {known} (`whimbrel application add`)")
        return self.applications[name]

    async def discover(self, user: str, application: str) -> Session:
        """The user's service, deployed if it is not yet; may be asked again at any time. Raises Unknown, Conflict (it
        uses another application), Refused (nobody has room, or it has not reported), and what the agents say."""
        wanted = self.application(application)
        async with self._lock(user):
            session = self.sessions.get(user)
            if session is not None and session.application != application:
                raise Conflict(f"user {user} uses {session.application} already: remove the user first")
            if session is not None and (status := await self._found(session)) is not None:
                return await self._ready(session, status)
            if session is not None and session.state is SessionState.DEPLOYING:
                return await self._deploy(session, wanted, again=True)
            return await self._deploy(await self._placed(user, wanted), wanted)

    async def _placed(self, user: str, wanted: Application) -> Session:
        """A session that is to be deployed at the place that the planner chose, and that is taken from now on."""
        await self._report_of(user)
        session = Session(
            user=user,
            application=wanted.name,
            service=service_name(wanted.name, user),
            state=SessionState.DEPLOYING,
            workload=wanted.workload,
            env=wanted.env,
        )
        return await self._place(session, wanted)

    async def _deploy(self, session: Session, wanted: Application, *, again: bool = False) -> Session:
        """`again`: an earlier request had no answer, and may still be carried out."""
        try:
            status = await self._services.run(_spec(session, wanted), session.server)
        except Unreachable:
            raise  # the agent may have started it all the same: its place is kept until `settle` knows
        except WhimbrelError:
            if again and (found := await self._found(session)) is not None:
                return await self._ready(session, found)
            if not again:
                with suppress(WhimbrelError):
                    await self._forget(session)
            raise
        log.info("deployed", user=session.user, service=session.service, server=session.server)
        return await self._ready(session, status)

    async def remove(self, user: str) -> None:
        """The user, and its service. Raises Unknown, and what the agents say."""
        async with self._lock(user):
            session = self.sessions.get(user)
            if session is None:
                if self._users.get(user) is None:
                    raise Unknown(f"there is no user {user!r}: see `whimbrel plan users`")
            else:
                with suppress(Unknown):  # it is gone already
                    await self._services.remove(session.service)
                await self._forget(session)
            self._users.remove(user)

    async def put(self, session: Session) -> Session:
        await asyncio.to_thread(self._book.put_session, session)
        self.sessions[session.user] = session
        return session

    async def settle(self) -> None:
        """Sessions that were about to be deployed when their request, or an earlier controller, ended: ready where the
        service runs; forgotten when it has appeared nowhere for `DOUBT_S`: the user asks again. Raises Unreachable
        while agents are away that may know."""
        away: Unreachable | None = None
        for session in list(self.sessions.values()):
            if session.state is SessionState.DEPLOYING and not self._lock(session.user).locked():
                async with self._lock(session.user):
                    since_s = self._doubted_s.setdefault(session.user, time.monotonic())
                    try:
                        status = await self._found(session)
                    except Unreachable as error:
                        away = error
                        continue
                    if status is not None:
                        await self._ready(session, status)
                    elif time.monotonic() - since_s > DOUBT_S:
                        await self._forget(session)
        if away is not None:
            raise away

    async def _found(self, session: Session) -> ServiceStatus | None:
        """None when it runs nowhere. Raises Unreachable while that cannot be known."""
        try:
            status = await self._services.find(session.service)
        except Unknown:
            away = (await self._services.list()).unreachable
            if away and session.state is SessionState.READY:
                raise
            if session.server in away:
                raise Unreachable(
                    f"service {session.service} was about to start on {session.server}, whose agent does not answer: "
                    "start it again"
                ) from None
            return None
        return status if status.state is not ServiceState.STOPPED else None

    async def _ready(self, session: Session, status: ServiceStatus) -> Session:
        self._doubted_s.pop(session.user, None)
        ready = replace(
            session,
            state=SessionState.READY,
            server=status.node,
            address=status.spec.address.split("/")[0],
            ports=status.spec.ports,
        )
        return ready if ready == self.sessions.get(session.user) else await self.put(ready)

    async def _forget(self, session: Session) -> None:
        await asyncio.to_thread(self._book.remove_session, session.user)
        self.sessions.pop(session.user, None)
        self._doubted_s.pop(session.user, None)

    async def _report_of(self, user: str) -> None:
        """A placement needs to know where the user is: its report is waited for."""
        deadline = time.monotonic() + REPORT_WAIT_S
        while time.monotonic() < deadline:
            state = self._users.present().get(user)
            if state is not None and state.report is not None and state.report.serving:
                return
            await asyncio.sleep(0.05)
        raise Refused(
            f"user {user} has not reported which base station serves it: post reports to /v1/users/{user}/events first"
        )

    def _lock(self, user: str) -> asyncio.Lock:
        return self._busy.setdefault(user, asyncio.Lock())


def _spec(session: Session, application: Application) -> ServiceSpec:
    try:
        return ServiceSpec(
            name=session.service,
            image=application.image,
            address="",
            ports=application.ports,
            args=application.args,
            env=application.env,
            memory_limit_bytes=application.memory_limit_bytes,
            workload=application.workload,
        )
    except BadInput as error:
        raise BadInput(f"application {application.name} cannot be run for user {session.user}: {error}") from error
