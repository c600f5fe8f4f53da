"""The user of object detection: of what was put on each page nearly all must be found there, and as what it is. (That
the same page is answered in the same way every time is checked for all offloading services.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whimbrel.client.contract import Place, User
from whimbrel.workloads.offload.phone import Phone

SAME_PLACE = 0.5  # the least intersection over union, as in PASCAL VOC
LEAST_FOUND = 0.75  # share of a page's objects: no detector finds every one


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return across * down / (sum(areas) - across * down)


def judge(picture: dict[str, Any], found: list[dict[str, Any]]) -> str:
    missing = [due for due in picture["objects"] if not any(is_found(due, item) for item in found)]
    if len(missing) <= (1 - LEAST_FOUND) * len(picture["objects"]):
        return ""
    names = ", ".join(due["name"] for due in missing)
    return f"{picture['file']}: {len(missing)} of {len(picture['objects'])} objects were not found ({names})"


def is_found(due: dict[str, Any], item: dict[str, Any]) -> bool:
    return bool(item["name"] == due["name"] and overlap(item["box"], due["box"]) >= SAME_PLACE)


class ObjectsUser(Phone):
    judge = staticmethod(judge)


def user(place: Place) -> User:
    return ObjectsUser(place)
