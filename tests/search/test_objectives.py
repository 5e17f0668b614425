from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.search.objectives import Scale, equidistant, hypervolume, nondominated

POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(-0.5, 1.5)), min_size=1, max_size=30)


def test_constant_vectors_are_the_corners():
    scale = Scale((72.0, 18.0), (0.30, 0.10))
    assert scale.f1(np.array([72.0, 18.0, 45.0])).tolist() == [1, 0, 0.5]
    assert scale.f2(np.array([0.30, 0.10, 0.20])) == pytest.approx([0, 1, 0.5])
    assert scale.f2(np.array([0.25]), np.array([0.35])) == pytest.approx([0.5])


def test_hypervolume_of_the_two_corners():
    assert hypervolume(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(0.11 + 0.11 - 0.01)


@given(POINTS)
def test_nondominated_points_are_those_that_nobody_beats(points):
    f1, f2 = np.array(points).T
    expected = [not any((a <= x and b <= y) and (a < x or b < y) for a, b in points) for x, y in points]
    assert nondominated(f1, f2).tolist() == expected


@given(POINTS)
def test_dropping_dominated_points_keeps_the_hypervolume(points):
    f1, f2 = np.array(points).T
    best = nondominated(f1, f2)
    assert hypervolume(f1[best], f2[best]) == pytest.approx(hypervolume(f1, f2))


def test_doubt_keeps_what_is_beaten_by_less_than_the_noise():
    f1, f2 = np.array([0.5, 0.6, 0.7]), np.array([0.50, 0.52, 0.60])
    assert nondominated(f1, f2).tolist() == [True, False, False]
    assert nondominated(f1, f2, np.array([0.0, 0.05, 0.05])).tolist() == [True, True, False]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60, unique=True), st.integers(2, 20))
def test_equidistant_points_are_spread_from_end_to_end(f1, count):
    f1 = np.array(f1)
    found = equidistant(f1, count)
    assert len(set(found.tolist())) == len(found) <= max(count, 2)
    assert len(found) == len(f1) or len(found) <= count
    assert f1[found].min() == f1.min()
    assert f1[found].max() == f1.max()
    assert (np.diff(f1[found]) > 0).all()
