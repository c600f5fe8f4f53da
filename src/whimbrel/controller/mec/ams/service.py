"""What MEC 021 keeps, and what it tells of migrations and of an application's other instances.

An application instance is a service of ours, by its name; the same application is the same image. A migration moves an
instance to another host as it is, so the target of a move is the instance itself, under the address that it keeps.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from whimbrel.controller.access import Caller
from whimbrel.controller.mec.ams.models import (
    ADJACENT,
    KINDS,
    MOBILITY,
    AdjacentAppInfo,
    AdjacentAppInfoNotification,
    AdjacentAppInstanceInfo,
    AppMobilityServiceLevel,
    AssociateId,
    AssociateIdType,
    CommunicationInterface,
    IpAddress,
    MecHostInformation,
    MobilityCriteria,
    MobilityProcedureNotification,
    MobilityStatus,
    RegistrationInfo,
    TargetAppInfo,
    link_to,
)
from whimbrel.controller.mec.book import MecBook
from whimbrel.controller.mec.common import TimeStamp
from whimbrel.controller.mec.http import Problem, encode, forbidden, may_see, not_found
from whimbrel.controller.mec.locks import Locks
from whimbrel.controller.mec.people import People
from whimbrel.controller.mec.settings import Speakers
from whimbrel.controller.mec.subscriptions import Subscription, Subscriptions
from whimbrel.controller.planning.deploy import Deployment
from whimbrel.controller.services import Services
from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.model.service import ServiceStatus

REGISTRATIONS = "ams-registration"
MOST_REGISTRATIONS = 10_000
MOST_REGISTRATION_BYTES = 32 << 20
"""Of all registrations together, as they are kept."""
LOOK_EVERY_S = 0.5
NEIGHBOURS_EVERY_S = 2.0
FIND_S = 1.0
"""A node that does not answer holds the news of a migration up no longer."""

ANYBODY = Speakers()
"""Of callers without tokens."""

log = structlog.get_logger()


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    info: RegistrationInfo
    expires_unix_s: float = 0.0
    owner: str = ""

    def is_over(self) -> bool:
        return bool(self.expires_unix_s) and self.expires_unix_s <= time.time()


class Registrations:
    """Of applications that take part, kept over a restart. `speakers`: whose word counts for which service."""

    def __init__(self, book: MecBook, speakers: Speakers = ANYBODY) -> None:
        self._book, self._speakers = book, speakers
        self._rows: dict[str, _Row] = {}
        self._sizes: dict[str, int] = {}
        self._locks = Locks()

    async def load(self) -> None:
        texts = await asyncio.to_thread(self._book.all, REGISTRATIONS)
        rows = [msgspec.json.decode(text, type=_Row) for text in texts]
        self._rows = {row.info.app_mobility_service_id: row for row in rows}
        self._sizes = {row.info.app_mobility_service_id: len(text) for row, text in zip(rows, texts, strict=True)}

    # `caller`: only what this one may see; None: all.
    def all(self, caller: Caller | None = None) -> list[RegistrationInfo]:
        return [row.info for row in self._rows.values() if may_see(caller, row.owner)]

    def get(self, registration_id: str, caller: Caller | None = None) -> RegistrationInfo:
        """Raises Problem 404."""
        row = self._rows.get(registration_id)
        if row is None or not may_see(caller, row.owner):
            raise not_found(f"there is no application mobility service {registration_id!r}")
        return row.info

    async def add(self, info: RegistrationInfo, caller: Caller | None) -> RegistrationInfo:
        """An id that the client names is its own, if nobody has it. Raises Problem 403 (also where it does not speak
        for the service) and 429."""
        wanted = info.app_mobility_service_id or f"ams-{secrets.token_hex(8)}"
        async with self._locks.of(wanted):
            if wanted in self._rows:
                raise forbidden(f"application mobility service {wanted!r} is registered already: change it with PUT")
            if len(self._rows) >= MOST_REGISTRATIONS:
                raise Problem(429, f"there are {MOST_REGISTRATIONS} registrations already: remove one first")
            owner = caller.name if caller is not None else ""
            return await self._put(msgspec.structs.replace(info, app_mobility_service_id=wanted), owner)

    async def change(self, info: RegistrationInfo, caller: Caller | None) -> RegistrationInfo:
        """Raises Problem 403, 404 and 429."""
        async with self._locks.of(info.app_mobility_service_id):
            self.get(info.app_mobility_service_id, caller)  # it may be gone meanwhile
            return await self._put(info, self._rows[info.app_mobility_service_id].owner)

    async def _put(self, info: RegistrationInfo, owner: str) -> RegistrationInfo:
        instance = info.service_consumer_id.app_instance_id
        if info.device_information and not self._speakers.may(owner, instance):
            raise forbidden(
                f"consumer {owner} does not speak for the devices of service {instance[:100]!r}: leave "
                "deviceInformation out; the operator may name the service in `[mec.speaks_for]`"
            )
        seconds = info.expiry_time if info.expiry_time is not msgspec.UNSET else 0
        row = _Row(info=info, expires_unix_s=time.time() + seconds if seconds else 0.0, owner=owner)
        name, text = info.app_mobility_service_id, encode(row).decode()
        before, size = self._rows.get(name), self._sizes.get(name, 0)
        if sum(self._sizes.values()) - size + len(text) > MOST_REGISTRATION_BYTES:
            raise Problem(429, f"the registrations take {MOST_REGISTRATION_BYTES >> 20} MiB already: remove one first")
        self._rows[name], self._sizes[name] = row, len(text)  # at once: nobody else takes the room meanwhile
        try:
            await asyncio.to_thread(self._book.put, REGISTRATIONS, name, text)
        except BaseException:
            del self._rows[name], self._sizes[name]
            if before is not None:
                self._rows[name], self._sizes[name] = before, size
            raise
        return info

    async def remove(self, registration_id: str, caller: Caller | None = None) -> None:
        """Raises Problem 404, Unreachable (the database is away: it is still there)."""
        async with self._locks.of(registration_id):
            self.get(registration_id, caller)
            await self._remove(registration_id)

    async def _remove(self, registration_id: str) -> None:
        await asyncio.to_thread(self._book.remove, REGISTRATIONS, registration_id)
        del self._rows[registration_id], self._sizes[registration_id]

    async def end_what_is_due(self) -> None:
        """Raises Unreachable (the database is away: they end at the next look)."""
        for name in [name for name, row in self._rows.items() if row.is_over()]:
            async with self._locks.of(name):
                row = self._rows.get(name)  # it may have been removed, or registered for longer, meanwhile
                if row is not None and row.is_over():
                    await self._remove(name)
                    log.info("an application's registration is over", id=name)

    def _of(self, instance: str) -> list[RegistrationInfo]:
        """Those that count: an earlier configuration may have let others speak."""
        return [
            row.info
            for row in self._rows.values()
            if row.info.service_consumer_id.app_instance_id == instance and self._speakers.may(row.owner, instance)
        ]

    def devices_of(self, instance: str) -> list[AssociateId]:
        return [device.associate_id for info in self._of(instance) for device in info.device_information]

    def forbids(self, instance: str) -> str:
        """The id of a registration by which the instance may not be moved; "" for none."""
        fixed = AppMobilityServiceLevel.NOT_ALLOWED
        for info in self._of(instance):
            if any(one.app_mobility_service_level == fixed for one in info.device_information):
                return info.app_mobility_service_id
        return ""


class Mobility:
    """`hear` is told of migrations; what it makes of them is told to subscribers in the same order."""

    def __init__(
        self,
        registrations: Registrations,
        subscriptions: Subscriptions,
        services: Services,
        deployment: Deployment,
        people: People,
    ) -> None:
        self.registrations, self.subscriptions = registrations, subscriptions
        self._services, self._deployment, self._people = services, deployment, people
        self._news: asyncio.Queue[tuple[str, MobilityStatus]] = asyncio.Queue()

    def check_may_move(self, service: str) -> None:
        """Raises Refused where its registration says that it is not to be moved."""
        if forbidden_by := self.registrations.forbids(service):
            raise Refused(
                f"service {service} is not to be moved: its registration {forbidden_by} at the application mobility "
                f"service says {AppMobilityServiceLevel.NOT_ALLOWED}; change or remove that registration first"
            )

    def hear(self, record: MigrationRecord, progress: Progress | None) -> None:
        if progress is not None or record.outcome is Outcome.DRY_RUN:
            return
        status = {Outcome.RUNNING: MobilityStatus.TRIGGERED, Outcome.DONE: MobilityStatus.COMPLETED}.get(
            record.outcome, MobilityStatus.FAILED
        )
        self._news.put_nowait((record.service, status))

    async def keep_telling(self) -> None:
        """For ever."""
        while True:
            service, status = await self._news.get()
            if wanted := self.subscriptions.of_kind(MOBILITY):
                await self._tell(service, status, wanted)

    async def _tell(self, service: str, status: MobilityStatus, wanted: Sequence[Subscription]) -> None:
        ids = self._users_of(service)
        try:
            async with asyncio.timeout(FIND_S):
                links = _links_of(await self._services.find(service))
        except (
            WhimbrelError,
            TimeoutError,
        ):  # it runs nowhere that can be seen just now: its name still says what moves
            links = None
        target = TargetAppInfo(app_instance_id=service, comm_interface=links)
        for one in wanted:
            if _meets(one.value.filter_criteria, service, status, ids):
                message = MobilityProcedureNotification(
                    notification_type="MobilityProcedureNotification",
                    time_stamp=TimeStamp.now(),
                    associate_id=ids,
                    mobility_status=status,
                    target_app_info=target,
                    links=link_to(one.terms.href),
                )
                self.subscriptions.notify(one, message)

    def _users_of(self, service: str) -> tuple[AssociateId, ...]:
        """Who uses it: as its registrations say, and as we know."""
        ids = self.registrations.devices_of(service)
        for session in self._deployment.sessions.values():
            address = self._people.address_of(session.user) if session.service == service else ""
            if address:
                kind = AssociateIdType.UE_IPV6 if ":" in address else AssociateIdType.UE_IPV4
                ids.append(AssociateId(type=kind, value=address))
        return tuple(dict.fromkeys(ids))

    # --- other instances of an application ------------------------------------------------------------------
    async def adjacent(self, caller: Caller | None) -> list[AdjacentAppInstanceInfo]:
        """Of each registered instance the other instances of its application on other hosts."""
        running = (await self._services.list()).services
        names = dict.fromkeys(info.service_consumer_id.app_instance_id for info in self.registrations.all(caller))
        found: list[AdjacentAppInstanceInfo] = []
        for name in names:
            for other in _others(name, running):
                found.append(  # noqa: PERF401
                    AdjacentAppInstanceInfo(
                        app_d_id=_application_of(other),
                        app_instance_comm_link=(_links_of(other),),
                        app_instance_id=other.spec.name,
                        mec_host_information=MecHostInformation(
                            host_name=other.node, host_id={"node": {"name": other.node}}
                        ),
                        registered_instance_id=name,
                    )
                )
        return found

    async def keep_looking(self) -> None:
        """Tell of instances that came, or moved, for ever."""
        looked_s = -1e9
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.registrations.end_what_is_due()
                if time.monotonic() - looked_s >= NEIGHBOURS_EVERY_S:
                    await self.look_around(self.subscriptions.of_kind(ADJACENT))
                    looked_s = time.monotonic()
            except WhimbrelError as error:
                log.warning("the application mobility service cannot look", error=str(error))

    async def look_around(self, wanted: Sequence[Subscription]) -> None:
        """Tell these of what changed since they were last looked after. The first time only takes note."""
        if not wanted:
            return
        running = (await self._services.list()).services
        for one in wanted:
            others = _others(one.value.filter_criteria.app_instance_id, running)
            now = {other.spec.name: (other.node, other.spec.address) for other in others}
            before, one.state = one.state, now
            for other in others if before is not None else ():
                if now[other.spec.name] != before.get(other.spec.name):
                    self.subscriptions.notify(one, _neighbour(other, one))


def kinds() -> dict[str, Any]:
    return dict(KINDS)


def _neighbour(other: ServiceStatus, one: Subscription) -> AdjacentAppInfoNotification:
    return AdjacentAppInfoNotification(
        notification_type="AdjacentAppInfoNotification",
        time_stamp=TimeStamp.now(),
        adjacent_app_info=AdjacentAppInfo(app_instance_id=other.spec.name, comm_interface=(_links_of(other),)),
        links=link_to(one.terms.href),
    )


def _meets(criteria: MobilityCriteria, service: str, status: MobilityStatus, ids: Sequence[AssociateId]) -> bool:
    if criteria.app_instance_id and criteria.app_instance_id != service:
        return False
    if status not in criteria.mobility_status:
        return False
    return not criteria.associate_id or any(one in ids for one in criteria.associate_id)


def _application_of(status: ServiceStatus) -> str:
    return status.image_digest or status.spec.image


def _others(name: str, running: Sequence[ServiceStatus]) -> list[ServiceStatus]:
    own = next((one for one in running if one.spec.name == name), None)
    if own is None:
        return []
    application = _application_of(own)
    return [one for one in running if one.node != own.node and _application_of(one) == application]


def _links_of(status: ServiceStatus) -> CommunicationInterface:
    host = status.spec.address.split("/")[0]
    ports = sorted({int(port.split("/")[0]) for port in status.spec.ports})
    return CommunicationInterface(ip_addresses=tuple(IpAddress(host=host, port=port) for port in ports))
