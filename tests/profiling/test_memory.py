"""What a step's tensors take at the same time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanfleet.federated import Optimiser
from leanfleet.nets import NETWORKS, build
from leanfleet.profiling import Workload, check_room, memory, most_bytes, peak_bytes
from leanfleet.subnet import SubnetPlan

FLOAT = 4


def workload(name, shape, batch_size=4, momentum=0.9):
    net = build(name, classes=10, shape=shape, seed=0)
    plan = SubnetPlan.trace(net, torch.zeros(2, *shape), NETWORKS[name].keep)
    return Workload(plan, Optimiser(0.1, momentum), shape, 10, batch_size)


SMALL = workload("digits-cnn-small", (1, 8, 8))


def half(plan):
    return plan.windows([-(-g.channels // 2 // g.cells) * g.cells for g in plan.groups])


@pytest.mark.parametrize(
    ("name", "shape"), [("digits-cnn-small", (1, 8, 8)), ("densenet-bc-19", (3, 32, 32))]
)
def test_counting_needs_no_numbers(name, shape):
    work = workload(name, shape, batch_size=2)
    counted = [memory._counted(work, half(work.plan), device) for device in ("meta", "cpu")]
    assert counted[0] == pytest.approx(counted[1], rel=0.05)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40))
def test_activations_grow_with_the_mini_batch_and_all_else_does_not(batch_size):
    first, second, third = (
        peak_bytes(replace(SMALL, batch_size=n), SMALL.plan.full)
        for n in (40, 40 + batch_size, 40 + 2 * batch_size)
    )
    assert third - second == pytest.approx(second - first, rel=0.01)
    assert second > first


def test_a_narrower_network_takes_less_and_momentum_takes_a_copy():
    plan = SMALL.plan
    assert peak_bytes(SMALL, half(plan)) < peak_bytes(SMALL, plan.full)
    params = FLOAT * sum(shape.numel() for shape in plan.parameters.values())
    without = replace(SMALL, optimiser=Optimiser(0.1))
    assert peak_bytes(SMALL, half(plan)) >= peak_bytes(without, half(plan)) + params


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=len(SMALL.plan.groups), max_size=len(SMALL.plan.groups)))
def test_nothing_takes_more_than_the_most(eighths):
    plan = SMALL.plan
    some = plan.windows(
        [-(-g.channels * n // 8 // g.cells) * g.cells for g, n in zip(plan.groups, eighths, strict=True)]
    )
    assert peak_bytes(SMALL, some) <= most_bytes(SMALL)


def test_a_linear_network_by_hand():
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 50))
    plan = SubnetPlan.trace(net, torch.zeros(2, 1, 10, 10))
    found = memory._counted(Workload(plan, Optimiser(0.1), (1, 10, 10), 50, 8), plan.full, "meta")
    params, batch = FLOAT * (50 * 100 + 50), FLOAT * 8 * 100
    # The network, its copy and its gradients; then a mini-batch and what it becomes, a few times.
    assert 3 * params + batch <= found <= 3 * params + batch + 12 * FLOAT * 8 * 50


def test_an_operation_that_needs_numbers_is_counted_with_numbers(monkeypatch):
    counted = memory._counted

    def shapeless(work, kept, device):
        if device == "meta":
            raise NotImplementedError
        return counted(work, kept, device)

    whole = peak_bytes(SMALL, SMALL.plan.full)
    monkeypatch.setattr(memory, "_counted", shapeless)
    assert peak_bytes(SMALL, SMALL.plan.full) == pytest.approx(whole, rel=0.05)


def test_too_little_room_is_said_in_one_line():
    check_room(2e6, 2e6)
    with pytest.raises(
        MemoryError, match=r"^a training step takes 61.0 MB of memory at least, 20.0 MB are free$"
    ):
        check_room(61e6, 20e6)
    with pytest.raises(MemoryError, match=r" 0\.0 MB are free"):
        check_room(61e6, -1e6)
