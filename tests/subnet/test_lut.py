from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leanfleet.errors import LutError
from leanfleet.storage import save_tensors
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut, Row


def small(channels: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


PLAN = SubnetPlan.trace(small(), torch.zeros(1, 3, 8, 8))
UNIFORM = Lut.uniform(PLAN)


def test_uniform_is_equidistant_in_macs_between_the_extremes():
    full, half = PLAN.macs(PLAN.uniform(0.0)), PLAN.macs(PLAN.uniform(0.5))
    macs = [row.macs for row in UNIFORM.rows]
    assert len(macs) == 64
    assert (macs[0], macs[-1]) == (half, full)
    gaps = [b - a for a, b in itertools.pairwise(macs)]
    assert gaps == pytest.approx([(full - half) / 63] * 63, rel=1e-3)
    assert all(len(set(row.rates)) == 1 for row in UNIFORM.rows)


@given(st.floats(0, 2))
def test_pick_takes_the_most_expensive_row_that_fits(share):
    budget = share * UNIFORM.rows[-1].macs
    row = UNIFORM.pick(budget)
    fitting = [r for r in UNIFORM.rows if r.macs <= budget]
    assert row == (fitting[-1] if fitting else UNIFORM.cheapest)


def test_pick_at_a_rows_own_cost_takes_that_row():
    assert all(UNIFORM.pick(row.macs) == row for row in UNIFORM.rows)


TIMED = st.lists(
    st.tuples(st.integers(1, 9), st.floats(0.01, 9), st.none() | st.floats(0, 1)), min_size=1, max_size=8
)


def timed(columns):
    rows = [Row((0.25, 0.25), float(m), f2, None, s) for m, s, f2 in sorted(columns, key=lambda c: c[0])]
    return Lut(tuple(rows), (("a", 16), ("b", 24)), "x", "y")


@given(TIMED, st.floats(0, 10))
def test_of_rows_that_are_pareto_in_seconds_the_slowest_that_fits_is_picked(columns, budget):
    table = timed(columns)
    fitting = [row for row in table.rows if row.macs <= budget]
    picked = table.pick(budget)
    if not fitting:
        assert picked is table.cheapest
    else:
        assert picked in fitting
        assert picked.seconds == max(row.seconds for row in fitting)


def test_a_larger_budget_never_picks_what_loses_more():
    # Pareto-optimal in seconds; by MACs alone a budget of 7 would take the row that loses most but one.
    table = timed([(4, 1.0, 1.0), (7, 1.5, 0.8), (6, 2.0, 0.5), (9, 3.0, 0.0)])
    assert [table.pick(budget).f2 for budget in (4, 5, 6, 7, 8, 9)] == [1.0, 1.0, 0.5, 0.5, 0.5, 0.0]


@given(TIMED)
def test_what_was_not_measured_stays_unknown_on_the_disk(tmp_path_factory, columns):
    path = tmp_path_factory.mktemp("lut") / "a.lut"
    table = timed(columns)
    table.save(path)
    assert Lut.load(path).rows == table.rows


def test_a_saved_table_comes_back_equal(tmp_path):
    UNIFORM.save(tmp_path / "a.lut")
    loaded = Lut.load(tmp_path / "a.lut")
    assert loaded == UNIFORM
    loaded.check(PLAN)


def test_rows_take_the_papers_room():
    # 64 rows of 99 rates and the MACs, 4 bytes each: 25,600 bytes (Rapp et al. 2022: 25 kB).
    assert 64 * (99 + 1) * 4 == 25_600
    rates = torch.tensor([row.rates for row in UNIFORM.rows], dtype=torch.float32)
    assert rates.nbytes == 64 * len(PLAN.groups) * 4


def test_a_table_does_not_care_about_classes():
    other = SubnetPlan.trace(nn.Sequential(*small()[:-1], nn.Linear(24, 7)), torch.zeros(1, 3, 8, 8))
    UNIFORM.check(other)


def test_another_network_is_refused():
    other = SubnetPlan.trace(small(32), torch.zeros(1, 3, 8, 8))
    with pytest.raises(LutError, match="another network"):
        UNIFORM.check(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "not a whole"), (b"x" * 100, "not a whole")],
)
def test_a_missing_or_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "broken.lut"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LutError, match=rf"broken\.lut.*{message}"):
        Lut.load(path)


def test_a_file_cut_in_half_is_named(tmp_path):
    path = tmp_path / "half.lut"
    UNIFORM.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LutError, match=r"half\.lut"):
        Lut.load(path)


def test_other_tensors_are_no_table(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"w": torch.zeros(3)}, {})
    with pytest.raises(LutError, match="no table of dropout vectors"):
        Lut.load(path)


def test_rates_out_of_range_are_refused(tmp_path):
    bad = Lut((UNIFORM.rows[0].__class__((1.5,) * len(PLAN.groups), 10.0),), UNIFORM.groups, "x", "y")
    bad.save(tmp_path / "bad.lut")
    with pytest.raises(LutError, match="out of range"):
        Lut.load(tmp_path / "bad.lut")
