"""The user of face recognition: each picture has one face, and it is known whose."""

from __future__ import annotations

from typing import Any

from whimbrel.client.contract import Place, User
from whimbrel.workloads.offload.phone import Phone


def judge(picture: dict[str, Any], found: list[dict[str, Any]]) -> str:
    names = [face["name"] for face in found]
    return "" if names == [picture["person"]] else f"{picture['file']} shows {picture['person']}, not {names}"


class FaceUser(Phone):
    judge = staticmethod(judge)


def user(place: Place) -> User:
    return FaceUser(place)
