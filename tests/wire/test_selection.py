from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.wire import selection


def reference(flat: Tensor, count: int) -> list[int]:
    """Stable: of equals the lowest position."""
    order = np.argsort(-flat.abs().double().numpy(), kind="stable")
    return sorted(order[:count].tolist())


@given(st.lists(st.integers(-3, 3), max_size=40), st.data())
def test_ties_go_to_the_lowest_positions(numbers: list[int], data: st.DataObject) -> None:
    flat = torch.tensor(numbers, dtype=torch.float32)
    count = data.draw(st.integers(0, len(numbers)))
    assert selection.largest(flat, count).tolist() == reference(flat, count)


LARGE = 8 * 2**16 + 77


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 50, 5000, LARGE // 8 - 1, LARGE - 3])
def test_large_vectors_give_the_same_set(count: int, dtype: torch.dtype) -> None:
    flat = torch.randn(LARGE, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert selection.largest(flat, count).tolist() == reference(flat, count)


def test_the_sample_is_used_where_few_are_wanted_of_many() -> None:
    flat = torch.randn(LARGE, generator=torch.Generator().manual_seed(2))
    passed = selection._passing(flat, 500)
    assert passed is not None
    assert 500 <= len(passed) < 1000
    assert selection._passing(flat[:1000], 10) is None


def test_a_sample_that_misleads_costs_time_only() -> None:
    """The sample sees ones enough for what is wanted, but there are no others than those it sees."""
    flat = torch.zeros(LARGE)
    flat[: 80_000 : LARGE // 2**16] = 1.0
    count = LARGE // 8 - 1
    assert selection._passing(flat, count) is None
    assert selection.largest(flat, count).tolist() == reference(flat, count)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_vectors(value: float) -> None:
    assert selection.largest(torch.full((LARGE,), value), 600).tolist() == list(range(600))
