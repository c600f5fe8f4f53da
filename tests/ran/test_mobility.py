from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.model.errors import BadInput
from whimbrel.ran.mobility import Course, Fix, Leg, Origin, track_of, walk

LINE = [Leg(0, 0, 1), Leg(100, 0, 2), Leg(100, 30, 1, pause_s=5), Leg(0, 30, 10)]


def test_a_walk_goes_at_the_speeds_given() -> None:
    track = walk(LINE, "way")
    assert track.duration_s == pytest.approx(50 + 30 + 5 + 10)
    assert track.at(25) == pytest.approx((50, 0, 2))
    assert track.at(65) == pytest.approx((100, 15, 1))
    assert track.at(82) == pytest.approx((100, 30, 0)), "the pause"
    assert track.at(90) == pytest.approx((50, 30, 10))
    assert track.at(1e6) == pytest.approx((0, 30, 0)), "at its end the user stands"
    assert track.at(-5) == pytest.approx((0, 0, 2))
    assert not track.is_over(94.9)
    assert track.is_over(95)


def test_round_trips() -> None:
    track = walk([Leg(0, 0, 1), Leg(100, 0, 1)], "way", course=Course.THERE_AND_BACK)
    assert track.at(150).x_m == pytest.approx(50)
    assert track.at(100) == pytest.approx((100, 0, 1))
    assert track.at(200).x_m == pytest.approx(0)
    assert track.at(730).x_m == pytest.approx(70)
    assert not track.is_over(1e9)


def test_a_loop_begins_anew() -> None:
    track = walk([Leg(0, 0, 1), Leg(50, 0, 1), Leg(0, 0, 1)], "way", course=Course.LOOP)
    assert track.at(125).x_m == pytest.approx(25)


def test_a_user_may_stand() -> None:
    for course in (Course.ONCE, Course.THERE_AND_BACK, Course.LOOP):
        assert walk([Leg(3, 4, 1)], "way", course=course).at(17) == pytest.approx((3, 4, 0))


@pytest.mark.parametrize(
    ("fixes", "said"),
    [
        ([], "there is no place in it"),
        ([Fix(0, 0, 0), Fix(1, math.nan, 0)], "fix 2 .* has a number that is none"),
        ([Fix(0, 0, 0), Fix(math.inf, 0, 0)], "fix 2 .* has a number that is none"),
        ([Fix(5, 0, 0), Fix(4, 1, 0)], "time goes back at fix 2, from 5 to 4 s"),
        ([Fix(5, 0, 0), Fix(5, 1, 0)], "in two places"),
        ([Fix(0, 0, 0), Fix(1, 1, 0), Fix(2, 500, 0)], "the user jumps at fix 3: 499 m in 1 s is 499 m/s"),
    ],
)
def test_a_track_that_cannot_be_is_refused(fixes: list[Fix], said: str) -> None:
    with pytest.raises(BadInput, match=f"way: .*{said}|way: {said}"):
        track_of(fixes, "way")


@pytest.mark.parametrize(
    ("legs", "course", "said"),
    [
        ([], Course.ONCE, "there is no place"),
        ([Leg(0, 0, 1), Leg(5, 0, 0)], Course.ONCE, "speed to waypoint 2 is 0 m/s"),
        ([Leg(0, 0, 1), Leg(5, 0, -1)], Course.ONCE, "speed to waypoint 2 is -1 m/s"),
        ([Leg(0, 0, 1), Leg(5, 0, 900)], Course.ONCE, "at most 150"),
        ([Leg(0, 0, 1), Leg(5, 0, math.nan)], Course.ONCE, "waypoint 2 has a number that is none"),
        ([Leg(0, 0, 1, pause_s=-1)], Course.ONCE, "pause of -1 s"),
        ([Leg(0, 0, 1), Leg(5, 0, 1)], Course.LOOP, "a loop must end where it began"),
    ],
)
def test_waypoints_that_make_no_way_are_refused(legs: list[Leg], course: Course, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        walk(legs, "way", course=course)


def test_fixes_need_not_begin_at_zero_and_may_be_repeated() -> None:
    track = track_of([Fix(100, 0, 0), Fix(100, 0, 0), Fix(110, 10, 0)], "way")
    assert track.at(5).x_m == pytest.approx(5)


def test_degrees_become_metres() -> None:
    origin = Origin(lat=60.0, lon=25.0)
    x_m, y_m = origin.project(60.01, 25.01, "there")
    assert y_m == pytest.approx(1111.95, rel=1e-4)
    assert x_m == pytest.approx(1111.95 / 2, rel=1e-3), "a degree of longitude is half as long at 60 degrees north"
    west = Origin(lat=0.0, lon=179.999)
    assert west.project(0.0, -179.999, "over the date line")[0] == pytest.approx(222.39, rel=1e-3)


@pytest.mark.parametrize(("lat", "lon"), [(math.nan, 0), (91, 0), (0, 181)])
def test_degrees_that_are_none_are_refused(lat: float, lon: float) -> None:
    with pytest.raises(BadInput, match="is no place"):
        Origin(lat=0, lon=0).project(lat, lon, "point 3")
    with pytest.raises(BadInput, match="is no place"):
        Origin(lat=lat, lon=lon)


def test_a_place_far_from_the_origin_is_refused() -> None:
    with pytest.raises(BadInput, match=r"point 3: 48\.0, 2\.0 is .* km from the origin"):
        Origin(lat=1.3, lon=103.8).project(48.0, 2.0, "point 3")


@given(
    st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500), st.floats(0.1, 50)), min_size=2, max_size=6),
    st.floats(0, 5000),
    st.sampled_from([Course.ONCE, Course.THERE_AND_BACK]),
)
def test_nobody_ever_moves_faster_than_told(
    spots: list[tuple[float, float, float]], t_s: float, course: Course
) -> None:
    track = walk([Leg(*spot) for spot in spots], "way", course=course)
    one, two = track.at(t_s), track.at(t_s + 0.1)
    assert math.dist(one[:2], two[:2]) <= 0.1 * max(spot[2] for spot in spots) + 1e-6
    assert one.speed_m_per_s <= max(spot[2] for spot in spots) * (1 + 1e-6)
