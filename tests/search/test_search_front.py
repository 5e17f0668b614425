from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.nets import build
from leanfleet.search.front import LINE, Candidates, candidates, mixes, table, uniform_line
from leanfleet.search.objectives import Scale
from leanfleet.search.strategies import Space
from leanfleet.subnet import SubnetPlan

PLAN = SubnetPlan.trace(build("digits-cnn"), torch.zeros(2, 1, 8, 8), ("hidden",))
GROUPS = len(PLAN.groups)
COSTS = PLAN.macs_of_vectors(np.array([[0.0] * GROUPS, [0.5] * GROUPS]))
SPACE = Space(GROUPS, PLAN.macs_of_vectors, Scale((COSTS[0], COSTS[1]), (1.0, 0.0)))
RATES = st.lists(st.tuples(*[st.floats(0, 0.5)] * GROUPS), min_size=0, max_size=12)
QUICK = settings(max_examples=30, deadline=None)


def front_of(vectors):
    return np.concatenate([SPACE.extremes, np.array(vectors).reshape(-1, GROUPS)])


def gains_of(rates, seeds=5, noise=0.0):
    """Both measures, so that dropping the first layer loses most."""
    f2 = (rates / 0.5) ** 1.5 @ np.arange(GROUPS, 0, -1) / sum(range(GROUPS + 1))
    luck = (
        np.random.default_rng(0).normal(0, noise, (len(rates), seeds))
        if noise
        else np.zeros((len(rates), seeds))
    )
    gain = 1 - f2[:, None] + luck
    return np.stack([gain, 2 * gain], axis=2)


@given(RATES, st.integers(0, 40))
@QUICK
def test_mixes_lie_between_neighbours_and_halve_the_largest_gaps(vectors, count):
    front = front_of(vectors)
    found = mixes(SPACE, front, count)
    assert found.shape == (count, GROUPS)
    assert (found >= 0).all()
    assert (found <= 0.5).all()
    before, after = (np.diff(np.sort(SPACE.f1(v))).max() for v in (front, np.concatenate([front, found])))
    assert after <= before + 1e-9
    if count >= len(front) - 1:
        # One in every gap at least, unless it was small already.
        assert after <= max(before / 2, 1 / (count - len(front) + 2)) + 1e-6


def test_a_mix_of_the_extremes_has_one_rate_for_all_and_even_costs():
    found = mixes(SPACE, SPACE.extremes, 3)
    assert np.ptp(found, axis=1) == pytest.approx([0.0] * 3)
    assert np.sort(SPACE.f1(found)) == pytest.approx([0.25, 0.5, 0.75])


@given(RATES, st.floats(0, 2000), st.integers(4, 64))
@QUICK
def test_what_is_measured_fits_into_the_time(vectors, affordable, population):
    given_ = candidates(PLAN, SPACE, front_of(vectors), population, affordable)
    count = len(given_.rates)
    assert given_.rates[:2].tolist() == SPACE.extremes.tolist()
    line = given_.rates[2 : 2 + given_.line]
    assert (np.ptp(line, axis=1) < 1e-12).all()
    if affordable >= 2:
        assert 2 <= count <= affordable
    else:
        # Nothing can be measured: the table is filled all the same.
        assert count == population
    assert count - given_.line <= population


def test_with_time_enough_a_coarse_front_is_filled_up():
    given_ = candidates(PLAN, SPACE, front_of([(0.1, 0.2, 0.3)]), 64, math.inf)
    assert (len(given_.rates), given_.line, given_.mixed) == (64 + LINE, LINE, 61)
    rows, about = table(PLAN, SPACE, given_, gains_of(given_.rates, noise=0.05), 0, 64, timed=False)
    assert len(rows) <= 64
    assert all(row.f2 is not None for row in rows)
    assert len(about["interpolated"]) > 20


@given(RATES, st.integers(1, 6))
@QUICK
def test_no_row_is_beaten_by_more_than_the_noise(vectors, seeds):
    given_ = candidates(PLAN, SPACE, front_of(vectors), 32, math.inf)
    gains = gains_of(given_.rates, seeds, noise=0.1)
    rows, about = table(PLAN, SPACE, given_, gains, 1, 32, timed=False)
    assert [row.macs for row in rows] == sorted(row.macs for row in rows)
    each = {
        tuple(v): g for v, g in zip(given_.rates.astype(np.float32).tolist(), gains[:, :, 1], strict=True)
    }
    inner = [row for row in rows[1:-1] if row.f2 is not None]
    for row in inner:
        for cheaper in (other for other in inner if other.macs < row.macs):
            ahead = each[cheaper.rates] - each[row.rates]
            assert ahead.mean() <= 0 or (seeds > 1 and ahead.mean() < 2 * ahead.std(ddof=1) / seeds**0.5)
    assert (rows[0].f2, rows[-1].f2) == pytest.approx((1.0, 0.0))
    assert (seeds == 1) == (rows[3].stderr is None)
    assert set(about["hypervolume"]) == {"accuracy", "loss"}
    # The same gains, twice as large: the objective is normalised. One seed cannot choose and judge.
    assert (seeds == 1) == (about["hypervolume"]["loss"] is None)
    if seeds > 1:
        assert about["hypervolume"]["loss"] == pytest.approx(about["hypervolume"]["accuracy"])


def test_where_time_was_short_mixes_fill_the_gaps_and_say_so():
    given_ = candidates(PLAN, SPACE, front_of([(0.1, 0.1, 0.3)] * 3), 64, 3 * 13)
    assert len(given_.rates) == 13
    rows, about = table(PLAN, SPACE, given_, gains_of(given_.rates, 3), 0, 64, timed=False)
    assert len(rows) > 50
    guessed = [place for place, row in enumerate(rows) if row.f2 is None]
    assert guessed
    assert set(guessed) <= set(about["interpolated"])
    assert all(rows[place].stderr is None for place in guessed)
    gaps = np.diff([row.macs for row in rows]) / (COSTS[0] - COSTS[1])
    assert (gaps > 0).all()
    assert gaps.max() < 0.05


def test_without_a_measurement_there_is_a_table_that_claims_nothing():
    given_ = candidates(PLAN, SPACE, front_of([]), 64, 0)
    rows, about = table(PLAN, SPACE, given_, np.empty((64, 0, 2)), 0, 64, timed=False)
    assert len(rows) == 64
    assert {row.f2 for row in rows} == {None}
    assert about["hypervolume"] == {"accuracy": None, "loss": None}
    assert about["front"] == about["uniform"] == []


def test_the_line_is_no_worse_for_having_fewer_points():
    # A front of rates for all layers that are the same: there is nothing to gain.
    line = uniform_line(PLAN, 62)
    given_ = candidates(PLAN, SPACE, front_of(line), 64, math.inf)
    _, about = table(PLAN, SPACE, given_, gains_of(given_.rates), 0, 64, timed=False)
    assert about["hypervolume_uniform"]["loss"] == pytest.approx(about["hypervolume"]["loss"], abs=1e-3)


def test_luck_makes_no_front_look_better_than_the_line():
    """There is nothing to gain, and 62 noisy rows: chosen and judged by the same seeds they would win."""
    given_ = candidates(PLAN, SPACE, front_of(uniform_line(PLAN, 62)), 64, math.inf)
    exact, ahead = gains_of(given_.rates, 4), []
    for seed in range(150):
        luck = np.random.default_rng(seed).normal(0, 0.1, exact.shape)
        _, about = table(PLAN, SPACE, given_, exact + luck, 0, 64, timed=False)
        ahead.append(about["hypervolume"]["accuracy"] - about["hypervolume_uniform"]["accuracy"])
    assert abs(np.mean(ahead)) < 3 * np.std(ahead) / len(ahead) ** 0.5


def test_a_front_that_is_better_is_better_by_that():
    given_ = candidates(PLAN, SPACE, front_of(uniform_line(PLAN, 62)), 64, math.inf)
    gains = gains_of(given_.rates, 4)
    # Rows of the front, but for the extremes, lose a tenth less.
    gains[2 + given_.line :] += 0.1 * (gains[0] - gains[1])
    _, about = table(PLAN, SPACE, given_, gains, 0, 64, timed=False)
    gained = about["hypervolume"]["loss"] - about["hypervolume_uniform"]["loss"]
    # Both are read where the line was measured, the extremes included, which nothing changes.
    assert gained == pytest.approx(0.1 * LINE / (LINE + 1), abs=1e-3)


def test_seeds_that_show_no_difference_are_told():
    given_ = candidates(PLAN, SPACE, front_of([(0.1, 0.2, 0.3)]), 16, math.inf)
    rows, about = table(PLAN, SPACE, given_, -gains_of(given_.rates), 0, 16, timed=False)
    assert not about["judged"]
    assert {row.f2 for row in rows} == {None}


def test_rows_of_a_timed_table_know_their_seconds():
    given_ = Candidates(np.concatenate([SPACE.extremes, uniform_line(PLAN, 3)]), 3, 0)
    rows, _ = table(PLAN, SPACE, given_, gains_of(given_.rates), 0, 5, timed=True)
    assert [row.seconds for row in rows] == pytest.approx([row.macs for row in rows])
