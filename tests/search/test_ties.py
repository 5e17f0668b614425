"""One rate for several layers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from leanfleet.nets import NETWORKS, build
from leanfleet.search.objectives import Scale
from leanfleet.search.protocols import FAST, PAPER
from leanfleet.search.strategies import Space, grid_rates
from leanfleet.search.ties import ties
from leanfleet.subnet import SubnetPlan


def plan_of(name: str) -> SubnetPlan:
    net = build(name, classes=10, shape=(3, 32, 32), seed=0)
    return SubnetPlan.trace(net, torch.zeros(2, 3, 32, 32), NETWORKS[name].keep)


def test_a_rate_for_each_block_and_kind_of_layer() -> None:
    plan = plan_of("densenet-bc-40")
    index = ties(plan.groups)
    assert len(index) == 39
    assert sorted(set(index.tolist())) == list(range(9))
    kinds = {}
    for group, rate in zip(plan.groups, index.tolist(), strict=True):
        kinds.setdefault(rate, []).append(group.name)
    assert kinds[0] == ["conv0"]
    assert kinds[1] == [f"block1.{i}.conv1" for i in range(6)]
    assert kinds[2] == [f"block1.{i}.conv2" for i in range(6)]
    assert kinds[3] == ["transition1.conv"]


@pytest.mark.parametrize(
    "protocol", [PAPER, replace(PAPER, strategy="chance"), FAST], ids=lambda p: p.strategy
)
@pytest.mark.parametrize("integer", [False, True])
def test_a_tied_strategy_asks_for_vectors_of_all_layers(protocol, integer) -> None:
    plan = plan_of("densenet-bc-19")
    index, count = ties(plan.groups), len(plan.groups)
    extremes = plan.macs_of_vectors(np.array([[0.0] * count, [0.5] * count]))
    scale = Scale((float(extremes[0]), float(extremes[1])), (1.0, 0.0))
    space = Space(count, plan.macs_of_vectors, scale, grid_rates(plan.groups) if integer else None)
    small = replace(
        protocol,
        population=16,
        generations=2,
        design=24 if protocol.design else 0,
        tied=True,
        seeded="careful",
    )
    strategy = small.make(space, 0, np.ones(count), index)
    asked = []
    while (question := strategy.ask(math.inf)) is not None:
        asked.append(question.rates)
        strategy.tell((question.rates / 0.5).mean(axis=1))
    for rates in (*asked, strategy.front()):
        assert rates.shape[1] == count
        for rate in set(index.tolist()):
            assert (np.ptp(rates[:, index == rate], axis=1) == 0).all()
    # Costs are those of the whole network, extremes included.
    front = strategy.front()
    assert space.f1(front).min() == pytest.approx(0.0)
    assert space.f1(front).max() == pytest.approx(1.0)
