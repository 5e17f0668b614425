from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.subnet.reshape import Reshaped, follow


@pytest.mark.parametrize(
    ("before", "after", "dim", "found"),
    [
        ((2, 8, 3, 3), (2, 72), 1, Reshaped(1, repeat=9)),
        ((2, 8, 1, 1), (2, 8), 1, Reshaped(1)),
        ((2, 8), (2, 8, 1, 1), 1, Reshaped(1)),
        ((2, 8), (2, 1, 8), 1, Reshaped(2)),
        ((2, 1, 8), (2, 8), 2, Reshaped(1)),
        ((2, 8, 3, 3), (2, 8, 9), 1, Reshaped(1)),
        ((2, 6, 8), (12, 8), 2, Reshaped(1)),
        ((12, 8), (2, 6, 8), 1, Reshaped(2)),
        ((2, 8, 3, 3), (2, 4, 2, 3, 3), 1, Reshaped(1, split=4)),
        ((8,), (1, 8, 1, 1), 0, Reshaped(1)),
        ((2, 3, 3, 8), (2, 72), 3, None),
        ((2, 8, 3, 3), (16, 9), 1, None),
        ((2, 8, 3, 3), (2, 12, 6), 1, None),
        ((2, 8), (2, 2, 2, 2), 1, None),
        ((2, 1), (2,), 1, None),
    ],
)
def test_follow(before: tuple[int, ...], after: tuple[int, ...], dim: int, found: Reshaped | None) -> None:
    assert follow(before, after, dim) == found


@given(st.data())
def test_what_is_followed_is_where_the_channels_are(data: st.DataObject) -> None:
    """A value that holds its own channel's number shows after the reshape where the channels went."""
    before = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    after, rest = [], math.prod(before)
    while rest > 1 or not after:
        after.append(data.draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0])))
        rest //= after[-1]
        if len(after) == 4:
            after.append(rest)
            rest = 1
    dim = data.draw(st.integers(0, len(before) - 1))
    found = follow(before, tuple(after), dim)
    if found is None or found.split > 1:
        return
    shape = [1] * len(before)
    shape[dim] = before[dim]
    numbers = torch.arange(before[dim]).view(shape).expand(before).reshape(after)
    expected = torch.arange(before[dim]).repeat_interleave(found.repeat)
    shape = [1] * len(after)
    shape[found.dim] = -1
    assert torch.equal(numbers, expected.view(shape).expand(after))
