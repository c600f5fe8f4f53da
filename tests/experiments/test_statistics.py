from __future__ import annotations

import pytest

from whimbrel.experiments.statistics import estimate, student_t, total

# Two-sided critical values of Student's distribution at 95 %, as every statistics book prints them.
TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 19: 2.093, 30: 2.042, 1000: 1.962}


@pytest.mark.parametrize("degrees", TABLE)
def test_student_t_is_that_of_the_books(degrees: int) -> None:
    assert student_t(degrees) == pytest.approx(TABLE[degrees], abs=0.0006)


def test_mean_deviation_and_interval() -> None:
    found = estimate([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert found is not None
    assert (found.n, found.mean, found.median) == (8, 5.0, 4.5)
    assert found.sd == pytest.approx(2.13809)  # sqrt(32 / 7)
    assert found.ci95 == pytest.approx(2.3646 * 2.13809 / 8**0.5, rel=1e-4)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one = estimate([3.0])
    assert one is not None
    assert (one.mean, one.sd, one.ci95) == (3.0, None, None)
    assert estimate([]) is None
    assert total([]) is None


def test_what_is_counted_is_summed() -> None:
    found = total([0.0, 2.0, 1.0])
    assert found is not None
    assert (found.mean, found.n, found.ci95) == (3.0, 3, None)
