"""The sections of the controller's configuration that the MEC interfaces read. All may be left out.

[mec]
callbacks = ["10.0.0.0/8", "app.example:8080"]    # where notifications may be sent; see `reach`
url = "http://mec.example:8077"                   # how consumers reach this controller; default: as they asked
plmn = "00101"                                    # MCC and MNC of the region's cells
origin = { lat = 48.2, lon = 16.37 }              # where x_m = 0, y_m = 0 lies

[mec.users]                                       # the addresses by which applications know users
ue-1 = "10.77.255.254"
[mec.cells]                                       # 28-bit cell identities; default: numbered as they are listed
bs-1 = "0000001"
[mec.speaks_for]                                  # which services a consumer's token registers for; default: none
video = ["video-*", "counter"]

Zones are those of [[base_stations]]; a cell of none is a zone of its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from whimbrel.controller.access import TokenEntry, TokenRole
from whimbrel.controller.mec.reach import Allowed, allowed_of
from whimbrel.controller.places import Cell, Place
from whimbrel.model.errors import BadInput
from whimbrel.ran.mobility import Origin

NOWHERE = Origin(lat=0.0, lon=0.0)


class Speakers(msgspec.Struct, frozen=True, kw_only=True):
    """Whose registrations say which users a service has and whether it may be moved. `operators`: names of their
    tokens; `named`: of a consumer's token the services, or their beginnings before a ``*``."""

    operators: frozenset[str] = frozenset()
    named: dict[str, tuple[str, ...]] = {}

    def may(self, owner: str, service: str) -> bool:
        """`owner`: a token's name, "" for a local caller where no token is asked for."""
        return not owner or owner in self.operators or any(_is_meant(one, service) for one in self.named.get(owner, ()))


def _is_meant(said: str, service: str) -> bool:
    return service.startswith(said[:-1]) if said.endswith("*") else service == said


class MecEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    callbacks: tuple[str, ...] | None = None
    url: str = ""
    plmn: str = "00101"
    origin: Origin = NOWHERE
    users: dict[str, str] = {}
    cells: dict[str, str] = {}
    speaks_for: dict[str, tuple[str, ...]] = {}


class MecConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`cells` (identities) and `zones` have every base station of the region, `places` those that stand somewhere."""

    callbacks: Allowed = Allowed()
    speakers: Speakers = Speakers()
    url: str = ""
    mcc: str = "001"
    mnc: str = "01"
    origin: Origin = NOWHERE
    users: dict[str, str] = {}
    cells: dict[str, str] = {}
    zones: dict[str, str] = {}
    places: dict[str, Place] = {}


def mec_of(entry: MecEntry, cells: Sequence[Cell], tokens: Sequence[TokenEntry], *, local: bool) -> MecConfig:
    """`cells`: of all base stations, in the order of the configuration. `local`: only users of this host can call; who
    comes through a proxy is none of them. Raises BadInput."""
    if not re.fullmatch(r"[0-9]{5,6}", entry.plmn):
        raise BadInput(f"[mec] plmn {entry.plmn!r} is no network: write its MCC and MNC, five or six digits")
    url = entry.url.rstrip("/")
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise BadInput(f"[mec] url {entry.url!r} leads nowhere: write it like http://mec.example:8077")
    stations = [cell.name for cell in cells]
    for name in entry.cells:
        if name not in stations:
            raise BadInput(f"[mec.cells] {name}: there is no gateway of that name among the nodes")
    return MecConfig(
        callbacks=allowed_of(entry.callbacks, local=local),
        speakers=_speakers(entry.speaks_for, tokens),
        url=url,
        mcc=entry.plmn[:3],
        mnc=entry.plmn[3:],
        origin=entry.origin,
        users=_addresses(entry.users),
        cells=_cells(entry.cells, stations),
        zones={cell.name: cell.zone or cell.name for cell in cells},
        places={cell.name: cell.place for cell in cells if cell.place is not None},
    )


def _speakers(said: dict[str, tuple[str, ...]], tokens: Sequence[TokenEntry]) -> Speakers:
    consumers = {token.name for token in tokens if token.role is TokenRole.CONSUMER}
    for name, services in said.items():
        if name not in consumers:
            raise BadInput(f"[mec.speaks_for] {name}: [api] tokens has no token of that name with the role consumer")
        for service in services:
            if not re.fullmatch(r"[a-z0-9-]+\*?|\*", service):
                raise BadInput(
                    f"[mec.speaks_for] {name}: {service!r} is no service: write its name, or the beginning "
                    "of names and `*`"
                )
    operators = frozenset(token.name for token in tokens if token.role is TokenRole.OPERATE)
    return Speakers(operators=operators, named=said)


def _addresses(users: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for user, text in users.items():
        try:
            address = str(ipaddress.ip_address(text))
        except ValueError:
            raise BadInput(f"[mec.users] {user}: {text!r} is no IP address") from None
        if address in found.values():
            raise BadInput(f"[mec.users] {user}: another user has {address}: each needs its own")
        found[user] = address
    return found


def _cells(said: dict[str, str], stations: Sequence[str]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for number, name in enumerate(stations, start=1):
        text = said.get(name, f"{number:07x}")
        if not re.fullmatch(r"[0-9a-fA-F]{7}", text):
            raise BadInput(
                f"[mec.cells] {name}: {text!r} is no cell identity: write its 28 bits as 7 hexadecimal digits"
            )
        if text.lower() in cells.values():
            raise BadInput(f"[mec.cells] {name}: another cell has the identity {text}: each needs its own")
        cells[name] = text.lower()
    return cells
