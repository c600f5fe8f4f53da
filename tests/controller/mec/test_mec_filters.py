"""Attribute-based filters and selectors of MEC 009, on plain values."""

from __future__ import annotations

from typing import Any

import pytest

from whimbrel.controller.mec.filters import Shape, select
from whimbrel.model.errors import BadInput

SHAPE = Shape(
    names=frozenset({"id", "size", "who", "devices", "on"}),
    complex=frozenset({"devices", "who"}),
    default=frozenset({"devices"}),
)
ITEMS: list[dict[str, Any]] = [
    {"id": "a", "size": 9, "who": {"app": "video"}, "devices": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "on": True},
    {"id": "b", "size": 10, "who": {"app": "o'clock, (new)"}, "devices": []},
    {"id": "c", "who": {}},
]


def found(**query: str) -> list[str]:
    return [item["id"] for item in select(ITEMS, query, SHAPE)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("(eq,id,a)", "a"),
        ("(neq,id,a)", "bc"),
        ("(in,id,a,c)", "ac"),
        ("(nin,id,a,c)", "b"),
        ("(cont,who/app,ide)", "a"),
        ("(ncont,who/app,ide)", "bc"),
        ("(gt,size,9)", "b"),
        ("(gte,size,9)", "ab"),
        ("(lt,size,10)", "a"),
        ("(lte,size,10)", "ab"),
        ("(eq,size,10.0)", "b"),
        ("(eq,devices/ip,10.0.0.2)", "a"),
        ("(eq,on,true)", "a"),
        ("(eq,who/app,'o''clock, (new)')", "b"),
        ("(neq,id,c);(gt,size,9)", "b"),
        ("(eq,who,video)", ""),
        ("(eq,who/nothing,video)", ""),
    ],
)
def test_a_filter_leaves_what_it_means(text: str, ids: str) -> None:
    assert found(filter=text) == list(ids)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("eq,id,a", "begins with '\\('"),
        ("(eq,id,a", "does not end"),
        ("(eq,id,'a)", "quoted value does not end"),
        ("(like,id,a)", "no operator 'like'"),
        ("(eq,id)", "needs an attribute and one value"),
        ("(eq,id,a,b)", "one value"),
        ("(in,id)", "at least one value"),
        ("(eq,colour,a)", "no attribute 'colour'"),
        ("(eq,id,a)(eq,id,b)", "parted by ';'"),
        ("()", "no operator ''"),
        ("(" * 5000, "too long"),
    ],
)
def test_a_filter_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        found(filter=text)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, {"id", "size", "who", "devices", "on"}),
        ({"all_fields": ""}, {"id", "size", "who", "devices", "on"}),
        ({"fields": "who"}, {"id", "size", "who", "on"}),
        ({"fields": "who/app,devices"}, {"id", "size", "who", "devices", "on"}),
        ({"exclude_fields": "who"}, {"id", "size", "devices", "on"}),
        ({"exclude_default": ""}, {"id", "size", "who", "on"}),
        ({"exclude_default": "", "fields": "devices"}, {"id", "size", "who", "devices", "on"}),
    ],
)
def test_selectors_leave_attributes_out(query: dict[str, str], names: set[str]) -> None:
    assert set(select(ITEMS, query, SHAPE)[0]) == names


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"all_fields": "", "fields": "who"}, "all_fields cannot go with fields"),
        ({"exclude_fields": "who", "fields": "who"}, "exclude_fields cannot go with fields"),
        ({"exclude_fields": "id"}, "'id' is no attribute that can be selected"),
    ],
)
def test_selectors_that_contradict_each_other_are_refused(query: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        select(ITEMS, query, SHAPE)
