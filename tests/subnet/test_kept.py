from __future__ import annotations

import torch
from masked import trace
from odd_networks import CASES

from leanfleet.subnet import SubnetPlan


def test_a_kept_set_is_a_mapping_in_the_order_of_the_groups() -> None:
    _, plan = trace(CASES["residual"])
    kept = plan.draw(plan.uniform(0.5), torch.Generator())
    assert list(kept) == [group.name for group in plan.groups]
    assert len(kept) == 4
    assert len(kept["a2"]) == 10 or len(kept["a2"]) in plan.groups[2].grid
    assert repr(plan.full) == "Kept(stem.0: 8/8, a1.0: 16/16, a2: 20/20, b1: 10/10)"


def test_full_is_known_however_it_came_about() -> None:
    _, plan = trace(CASES["mlp"])
    assert plan.full.full
    assert plan.draw((0.0, 0.0), torch.Generator()).full
    assert plan.draw((0.0, 0.0), torch.Generator(), bernoulli=True).full
    assert not plan.draw((0.0, 0.5), torch.Generator()).full


def test_equal_streams_give_equal_sets() -> None:
    _, plan = trace(CASES["concat"])
    draws = [plan.draw(plan.uniform(0.3), torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    assert not all(torch.equal(draws[0][name], draws[2][name]) for name in draws[0])


def test_a_network_without_droppable_layers_is_always_full() -> None:
    plan = SubnetPlan.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    assert plan.groups == ()
    assert plan.draw((), torch.Generator()).full
    assert plan.macs(()) == 6
