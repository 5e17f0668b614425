from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from leanfleet.subnet import ChannelGroup, grid

sizes = st.integers(1, 300)
rates = st.floats(0.0, 1.0, exclude_max=True)


def group(channels: int, cells: int = 1) -> ChannelGroup:
    return ChannelGroup("layer", channels, ("layer",), tuple(i * cells // channels for i in range(channels)))


@pytest.mark.parametrize(
    ("channels", "upper"),
    [(12, (6, 8, 10, 12)), (24, (12, 16, 24)), (48, (24, 32, 40, 48)), (60, (30, 32, 40, 48, 56, 60)),
     (16, (8, 16)), (5, (3, 4, 5))],
)  # fmt: skip
def test_from_half_up_the_grid_is_aligned(channels: int, upper: tuple[int, ...]) -> None:
    assert tuple(n for n in grid(channels) if 2 * n >= channels) == upper


@pytest.mark.parametrize(
    ("channels", "lower"), [(12, (1, 2, 4)), (48, (1, 8, 16)), (60, (1, 8, 16, 24)), (16, (1,)), (2, ())]
)
def test_below_half_it_goes_on_to_one(channels: int, lower: tuple[int, ...]) -> None:
    assert tuple(n for n in grid(channels) if 2 * n < channels) == lower


@given(st.integers(1, 12), st.integers(1, 40))
def test_every_count_fills_the_cells_equally(cells: int, per_cell: int) -> None:
    channels = cells * per_cell
    counts = grid(channels, cells)
    assert counts == tuple(sorted(set(counts)))
    assert counts[0] == cells
    assert counts[-1] == channels
    assert all(n % cells == 0 for n in counts)
    assert math.ceil(per_cell / 2) * cells in counts


@given(sizes, rates)
def test_the_expected_count_is_exact(channels: int, rate: float) -> None:
    target, low, high = group(channels).neighbours(rate)
    assert low <= target <= high
    assert {low, high} <= set(grid(channels))
    assert not any(low < n < high for n in grid(channels))
    assert target == pytest.approx(max(1.0, (1 - rate) * channels), abs=1e-6)


@given(sizes, rates)
def test_moments_are_those_of_the_two_neighbours(channels: int, rate: float) -> None:
    target, low, high = group(channels).neighbours(rate)
    assume(low < high)
    up = (target - low) / (high - low)
    mean, variance = group(channels).moments(rate)
    assert mean == pytest.approx(up * high + (1 - up) * low)
    assert variance == pytest.approx(up * high**2 + (1 - up) * low**2 - mean**2, abs=1e-6)


@given(st.integers(1, 4), st.integers(1, 12), rates)
def test_bernoulli_moments_count_the_one_that_is_always_kept(cells: int, size: int, rate: float) -> None:
    chances = {n: math.comb(size, n) * (1 - rate) ** n * rate ** (size - n) for n in range(size + 1)}
    counts = {n: cells * max(1, n) for n in chances}
    mean, variance = group(cells * size, cells).moments(rate, bernoulli=True)
    expected = sum(p * counts[n] for n, p in chances.items())
    assert mean == pytest.approx(expected)
    spread = sum(p * (counts[n] - expected) ** 2 for n, p in chances.items())
    assert variance == pytest.approx(spread, abs=1e-9)


@pytest.mark.parametrize("bernoulli", [False, True])
@pytest.mark.parametrize(("channels", "rate"), [(12, 0.31), (24, 0.5), (60, 0.13), (48, 0.8)])
def test_the_mean_of_10000_draws(channels: int, rate: float, bernoulli: bool) -> None:
    own, generator = group(channels), torch.Generator().manual_seed(1)
    draws = torch.tensor(
        [own.draw_count(rate, generator, bernoulli=bernoulli) for _ in range(10_000)], dtype=torch.float64
    )
    error = draws.std() / 100
    # On the grid nothing is random; the bound then asks for equality.
    assert abs(draws.mean() - (1 - rate) * channels) <= 3 * error + 1e-9
    assert bernoulli or set(draws.tolist()) <= set(own.neighbours(rate)[1:])


def test_every_filter_is_kept_equally_often() -> None:
    own, generator = group(12), torch.Generator().manual_seed(1)
    included = torch.zeros(12)
    for _ in range(10_000):
        included[own.draw_set(4, generator)] += 1
    deviation = math.sqrt(10_000 * (1 / 3) * (2 / 3))
    assert bool(((included - 10_000 / 3).abs() < 4 * deviation).all())


@given(st.integers(1, 5), st.integers(1, 9), st.data())
def test_a_kept_set_is_sorted_and_fills_its_cells_equally(cells: int, size: int, data: st.DataObject) -> None:
    own = group(cells * size, cells)
    count = cells * data.draw(st.integers(1, size))
    ids = own.draw_set(count, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert len(ids) == count
    assert (
        torch.bincount(torch.tensor(own.cell_of)[ids], minlength=cells).tolist() == [count // cells] * cells
    )


def test_bernoulli_keeps_at_least_one_a_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = {group(12, 3).draw_count(0.999, generator, bernoulli=True) for _ in range(50)}
    assert counts == {3}


@pytest.mark.parametrize("count", [0, 4, 15, -3])
def test_an_impossible_count_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"'layer' cannot keep {count} of 12 channels in 3 cells"):
        group(12, 3).draw_set(count, torch.Generator())
