from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leanfleet.randomness import torch_generator
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.cycle import Cycle


def grouped() -> SubnetPlan:
    net = nn.Sequential(
        nn.Conv2d(2, 24, 1), nn.Conv2d(24, 12, 1, groups=2), nn.Flatten(), nn.Linear(12 * 4, 3)
    )
    return SubnetPlan.trace(net, torch.zeros(2, 2, 2, 2))


PLAN = grouped()


@given(st.integers(0, 99), st.lists(st.floats(0, 0.9), min_size=1, max_size=12), st.booleans())
def test_no_channel_comes_again_before_all_have_come(seed, rates, bernoulli):
    cycle = Cycle(PLAN, torch_generator(seed))
    seen = {g.name: torch.zeros(g.channels, dtype=torch.int64) for g in PLAN.groups}
    for rate in rates:
        kept = cycle.draw(PLAN.uniform(rate), bernoulli=bernoulli)
        for name, ids in kept.items():
            seen[name][ids] += 1
            assert int(seen[name].max() - seen[name].min()) <= 1
    for group in PLAN.groups:
        total = seen[group.name]
        for members in group.members:
            assert int(total[members].sum()) == int(total.sum()) // group.cells


@given(st.integers(0, 99))
def test_halves_complement_each_other(seed):
    cycle = Cycle(PLAN, torch_generator(seed))
    one, two = (cycle.draw(PLAN.uniform(0.5)) for _ in range(2))
    for group in PLAN.groups:
        assert torch.equal(
            torch.cat([one[group.name], two[group.name]]).sort().values, torch.arange(group.channels)
        )


def test_cycles_differ_from_one_another():
    cycle = Cycle(PLAN, torch_generator(0))
    first = [cycle.draw(PLAN.uniform(0.5))[PLAN.groups[0].name].tolist() for _ in range(8)]
    assert len({tuple(ids) for ids in first[::2]}) == 4
