"""Counters that wrap around."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.gossip.counters import increments, weight_increment, weight_wrapped, wrapped


def test_values_in_steps() -> None:
    assert increments(torch.tensor([0.3, 0.4], dtype=torch.float64)).tolist() == [314573, 419430]
    assert weight_increment(0.5) == 2**39


def test_a_counter_that_wraps_is_absorbed_as_what_was_added() -> None:
    before = wrapped(torch.tensor([2**32 - 5]))
    after = wrapped(before.long() + 10)
    assert after.tolist() == [5]
    assert wrapped(after.long() - before.long()).tolist() == [10]


@given(st.integers(-(2**40), 2**40), st.integers(-(2**31), 2**31 - 1))
def test_differences_survive_wrapping(total: int, added: int) -> None:
    one, other = (wrapped(torch.tensor([number])) for number in (total, total + added))
    assert wrapped(other.long() - one.long()).item() == added
    assert weight_wrapped(weight_wrapped(2**62 * total + added) - weight_wrapped(2**62 * total)) == added


@pytest.mark.parametrize("value", [5000.0, float("inf"), float("nan")])
def test_what_a_counter_cannot_carry_is_refused(value: float) -> None:
    with pytest.raises(OverflowError, match="more than running sums can carry"):
        increments(torch.tensor([value]))
