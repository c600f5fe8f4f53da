"""What of the servers is taken already when a plan is made. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from whimbrel.controller.planning.monitor import Person
from whimbrel.controller.views import NodeView
from whimbrel.model.application import Application, Session, SessionState
from whimbrel.model.edge import Amounts
from whimbrel.model.service import ServiceStatus


@dataclass(frozen=True)
class Sight:
    """What nodes and services said last. `ready`: users whose services ran when they were asked."""

    nodes: tuple[NodeView, ...] = ()
    services: tuple[ServiceStatus, ...] = ()
    unreachable: tuple[str, ...] = ()
    ready: frozenset[str] = frozenset()


def taken(
    sight: Sight, people: Sequence[Person], sessions: Collection[Session], applications: Mapping[str, Application]
) -> list[tuple[str, Amounts]]:
    """(server, amounts) of services that are no user's, of those of users that are not among `people`, and of those
    that were given a place and have not been seen there yet."""
    planned = {person.session.service for person in people}
    by_service = {session.service: session for session in sessions}
    measured = {use.name for node in sight.nodes for use in node.service_use}
    found: list[tuple[str, Amounts]] = []
    for node in sight.nodes:
        for use in node.service_use:
            if use.name not in planned:
                used = Amounts(cpus=max(0.0, use.cpus_used), memory_bytes=float(max(0, use.memory_bytes)))
                found.append((node.name, _demand(by_service.get(use.name), applications) or used))
    homes = {status.spec.name: status.node for status in sight.services}
    for session in sessions:
        new = session.state is SessionState.DEPLOYING or session.user not in sight.ready
        home = homes.get(session.service, session.server if new else "")
        demand = _demand(session, applications)
        if home and demand is not None and session.service not in planned | measured:
            found.append((home, demand))
    return found


def held(people: Sequence[Person]) -> dict[str, float]:
    """Bytes of each server's storage that services hold which are planned for: they would be free without them."""
    found: dict[str, float] = {}
    for person in people:
        if person.server and person.going is None:
            found[person.server] = found.get(person.server, 0.0) + person.storage_bytes
    return found


def _demand(session: Session | None, applications: Mapping[str, Application]) -> Amounts | None:
    application = applications.get(session.application) if session is not None else None
    return application.demand if application is not None else None
