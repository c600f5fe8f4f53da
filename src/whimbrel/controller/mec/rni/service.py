"""What MEC 012 tells of the radio: users' handovers and what they measure, as they report it to the planner."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from whimbrel.controller.mec.common import LinkType, SubscriptionLink, TimeStamp
from whimbrel.controller.mec.people import People
from whimbrel.controller.mec.rni.models import (
    CELL_CHANGE,
    KINDS,
    MEAS_REP_UE,
    PERIODICAL,
    AssociateId,
    AssociateIdType,
    CellChangeNotification,
    CellInfo,
    CellUeInfo,
    Ecgi,
    HoStatus,
    L2Meas,
    MeasRepUeNotification,
    NeighbourCell,
    Plmn,
    rsrp_of,
    rsrq_of,
)
from whimbrel.controller.mec.settings import MecConfig
from whimbrel.controller.mec.subscriptions import Subscription, Subscriptions
from whimbrel.model.radio import HandoverRecord, Hears, UserEvent, UserReport

REPORT_EVERY_S = 1.0
"""For each user; users measure more often than a subscriber can want."""
FULL_LOAD_DB = -10 * math.log10(12)
"""RSRQ of a cell that is heard alone and has all its subcarriers busy: RSRP is one of a resource block's twelve."""


class RadioInformation:
    """`hear` gets every event of a user."""

    def __init__(self, config: MecConfig, subscriptions: Subscriptions, people: People) -> None:
        self.subscriptions = subscriptions
        self.plmn = Plmn(mcc=config.mcc, mnc=config.mnc)
        self._people = people

    def hear(self, event: UserEvent) -> None:
        if isinstance(event, HandoverRecord):
            self._tell_handover(event)
        elif isinstance(event, UserReport) and (believed := self._people.report_of(event.user)) is not None:
            self._tell_measured(believed)

    def ecgi(self, station: str) -> Ecgi | None:
        cell = self._people.cell_of(station)
        return Ecgi(cell_id=cell, plmn=self.plmn) if cell else None

    def ids_of(self, user: str) -> tuple[AssociateId, ...]:
        address = self._people.address_of(user)
        if not address:
            return ()
        kind = AssociateIdType.UE_IPV6 if ":" in address else AssociateIdType.UE_IPV4
        return (AssociateId(type=kind, value=address),)

    def _tell_handover(self, record: HandoverRecord) -> None:
        source, target = self.ecgi(record.source), self.ecgi(record.target)
        wanted = self.subscriptions.of_kind(CELL_CHANGE)
        if not wanted or source is None or target is None:
            return  # to come into coverage, or to leave it, is no change from cell to cell
        status = HoStatus.REJECTED if record.error else HoStatus.COMPLETED
        ids = self.ids_of(record.user)
        for one in wanted:
            criteria = one.value.filter_criteria_assoc_ho
            if status in criteria.ho_status and _meets(criteria, ids, (source, target)):
                message = CellChangeNotification(
                    notification_type="CellChangeNotification",
                    ho_status=status,
                    src_ecgi=source,
                    trg_ecgi=(target,),
                    associate_id=ids,
                    time_stamp=TimeStamp.now(),
                    links=_link(one),
                )
                self.subscriptions.notify(one, message)

    def _tell_measured(self, report: UserReport) -> None:
        serving = self.ecgi(report.serving)
        wanted = self.subscriptions.of_kind(MEAS_REP_UE)
        if not wanted or serving is None or not any(one.base_station == report.serving for one in report.hears):
            return
        ids, now_s = self.ids_of(report.user), time.monotonic()
        for one in wanted:
            criteria = one.value.filter_criteria_assoc_tri
            told: dict[str, float] = one.state if one.state is not None else {}
            one.state = told
            if (criteria.trigger and PERIODICAL not in criteria.trigger) or not _meets(criteria, ids, (serving,)):
                continue
            if now_s - told.get(report.user, -1e9) < REPORT_EVERY_S:
                continue
            told[report.user] = now_s
            self.subscriptions.notify(one, self._measured(report, serving, ids, one))

    def _measured(
        self, report: UserReport, serving: Ecgi, ids: tuple[AssociateId, ...], one: Subscription
    ) -> MeasRepUeNotification:
        levels = {heard.base_station: heard.filtered_dbm for heard in report.hears}
        quality = _quality(report.hears)
        neighbours = []
        for name, level in levels.items():
            ecgi = self.ecgi(name)
            if name != report.serving and ecgi is not None:
                neighbours.append(NeighbourCell(ecgi=ecgi, rsrp=rsrp_of(level), rsrq=rsrq_of(quality[name])))
        return MeasRepUeNotification(
            notification_type="MeasRepUeNotification",
            trigger=PERIODICAL,
            ecgi=serving,
            rsrp=rsrp_of(levels[report.serving]),
            rsrq=rsrq_of(quality[report.serving]),
            associate_id=ids,
            eutran_neighbour_cell_meas_info=tuple(neighbours),
            time_stamp=TimeStamp.now(),
            links=_link(one),
        )

    def layer2(self, cells: Sequence[str], addresses: Sequence[str]) -> L2Meas:
        """Of these cells, and of these users; of all where none is named."""
        wanted = {cell.lower() for cell in cells}
        asked = {self._people.user_of(address) for address in addresses} - {""}
        info, users = [], []
        for station in self._people.stations:
            ecgi = self.ecgi(station)
            if ecgi is None or (wanted and ecgi.cell_id not in wanted):
                continue
            there = self._people.at(station)
            if not addresses:
                count = len(there)
                info.append(
                    CellInfo(
                        ecgi=ecgi, number_of_active_ue_dl_nongbr_cell=count, number_of_active_ue_ul_nongbr_cell=count
                    )
                )
            users += [
                CellUeInfo(associate_id=one, ecgi=ecgi)
                for user in there
                if not addresses or user in asked
                for one in self.ids_of(user)
            ]
        return L2Meas(cell_info=tuple(info), cell_ue_info=tuple(users), time_stamp=TimeStamp.now())


def kinds() -> dict[str, Any]:
    return dict(KINDS)


def _quality(hears: Sequence[Hears]) -> dict[str, float]:
    """RSRQ in dB of each cell that is heard, if all of them were fully loaded: its share of what is received."""
    powers = {one.base_station: 10 ** (one.filtered_dbm / 10) for one in hears}
    total = sum(powers.values())
    return {name: 10 * math.log10(power / total) + FULL_LOAD_DB for name, power in powers.items()}


def _meets(criteria: Any, ids: Sequence[AssociateId], cells: Sequence[Ecgi]) -> bool:
    if criteria.associate_id and not any(one in ids for one in criteria.associate_id):
        return False
    named = {one.cell_id.lower() for one in criteria.ecgi if one.plmn == cells[0].plmn}
    return not criteria.ecgi or any(cell.cell_id in named for cell in cells)


def _link(one: Subscription) -> SubscriptionLink:
    return SubscriptionLink(subscription=LinkType(href=one.terms.href))
