"""Leaves hold exactly what is kept, and nothing else ever changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import close, leaves_of, trace
from odd_networks import CASES
from reference_cases import REFERENCES
from torch import Tensor
from torch.optim.sgd import sgd

from leanfleet.averaging import HolderSum
from leanfleet.subnet import Kept, SubnetPlan
from leanfleet.subnet.packing import gather, scatter_

NETWORKS = {**CASES, **REFERENCES}
every_network = pytest.mark.parametrize("name", NETWORKS)


class Forced(Kept):
    """All channels kept, and gathered nevertheless."""

    def __init__(self, plan: SubnetPlan) -> None:
        super().__init__(plan.full, plan._layouts)
        self.full = False

    def ids(self, layout: int, device: torch.device | str = "cpu") -> Tensor | None:
        return torch.arange(len(self._layouts.slots[layout]), device=device)

    def scale(self, layout: int) -> Tensor | None:
        return torch.ones(len(self._layouts.slots[layout]), dtype=torch.float64)


@every_network
def test_a_forced_gather_of_everything_changes_nothing(name: str) -> None:
    net, plan = trace(NETWORKS[name])
    params, kept = dict(net.named_parameters()), Forced(plan)
    leaves = plan.pack(params, kept)
    assert all(torch.equal(leaves[key], params[key]) for key in params)
    assert any(leaves[key].data_ptr() != params[key].data_ptr() for key in params)
    x = torch.randn(2, *NETWORKS[name].shape, dtype=torch.float64)
    close(plan.run(leaves, kept, x), net(x))


def masks_of(plan: SubnetPlan, params: dict[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """Return where the leaves lie, by packing the numbers of the entries."""
    numbers = {name: torch.arange(p.numel()).view(p.shape) for name, p in params.items()}
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in params.items()}
    for name, leaf in plan.pack(numbers, kept).items():
        assert len(leaf.unique()) == leaf.numel()
        masks[name].view(-1)[leaf.reshape(-1)] = True
    return masks


@every_network
def test_unpack_writes_what_was_packed_and_nothing_else(name: str) -> None:
    net, plan = trace(NETWORKS[name])
    params = {key: p.detach().clone() for key, p in net.named_parameters()}
    before = {key: p.clone() for key, p in params.items()}
    for seed in range(3):
        kept = plan.draw(plan.uniform(0.4), torch.Generator().manual_seed(seed))
        leaves = {key: torch.full_like(leaf, 7.0) for key, leaf in plan.pack(params, kept).items()}
        plan.unpack_(params, leaves, kept)
        masks = masks_of(plan, params, kept)
        for key, p in params.items():
            assert torch.equal(p, torch.where(masks[key], 7.0, before[key]))
            p.copy_(before[key])


@every_network
def test_positions_are_where_the_leaves_lie(name: str) -> None:
    net, plan = trace(NETWORKS[name])
    params = {key: p.detach() for key, p in net.named_parameters()}
    kept = plan.draw(plan.uniform(0.4), torch.Generator().manual_seed(0))
    total = HolderSum.like(params)
    total.add(plan.pack(params, kept), plan.positions(kept))
    nothing = {key: torch.full_like(p, -1.0) for key, p in params.items()}
    masks = masks_of(plan, params, kept)
    for key, mean in total.mean(nothing).items():
        assert torch.equal(mean, torch.where(masks[key], params[key], -1.0))


@every_network
def test_20_steps_leave_what_was_never_drawn_bit_for_bit(name: str) -> None:
    """Momentum 0.9 and weight decay 1e-3: parameters and momentum outside every drawn set stay as they were."""
    net, plan = trace(NETWORKS[name])
    params = {key: p.detach().clone() for key, p in net.named_parameters()}
    momenta = {key: torch.randn_like(p) for key, p in params.items()}
    state = [
        (params, {k: p.clone() for k, p in params.items()}),
        (momenta, {k: p.clone() for k, p in momenta.items()}),
    ]
    generator = torch.Generator().manual_seed(2)
    touched = {key: torch.zeros(p.shape, dtype=torch.bool) for key, p in params.items()}
    # Few distinct sets, so that most of a layer is never drawn.
    sets = [plan.draw(plan.uniform(0.7), generator) for _ in range(2)]
    for i in range(20):
        kept = sets[i % 2]
        for key, mask in masks_of(plan, params, kept).items():
            touched[key] |= mask
        x = torch.randn(3, *NETWORKS[name].shape, dtype=torch.float64, generator=generator)
        leaves, velocity = plan.pack(params, kept), plan.pack(momenta, kept)
        tracked = {key: leaf.clone().requires_grad_() for key, leaf in leaves.items()}
        out = plan.run(tracked, kept, x)
        loss = F.cross_entropy(out, torch.arange(3) % out.shape[1])
        grads = torch.autograd.grad(loss, list(tracked.values()), materialize_grads=True)
        sgd(
            list(leaves.values()), list(grads), list(velocity.values()), weight_decay=1e-3, momentum=0.9, lr=1e-3,
            dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
        plan.unpack_(params, leaves, kept)
        plan.unpack_(momenta, velocity, kept)
    assert any(not mask.all() for mask in touched.values())
    for tensors, start in state:
        for key, tensor in tensors.items():
            assert torch.equal(tensor[~touched[key]], start[key][~touched[key]])
            assert bool((tensor[touched[key]] != start[key][touched[key]]).all())


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.data())
@settings(max_examples=40)
def test_gather_and_scatter_of_a_grouped_weight(
    blocks: int, rows: int, columns: int, data: st.DataObject
) -> None:
    """Every group keeps its own rows and columns of its own diagonal block."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, blocks * columns, 1),
        torch.nn.Conv2d(blocks * columns, blocks * rows, 1, groups=blocks),
        torch.nn.Conv2d(blocks * rows, 2, 1),
    )
    plan = SubnetPlan.trace(net, torch.zeros(1, 1, 2, 2))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    counts = [g.cells * data.draw(st.integers(1, g.channels // g.cells)) for g in plan.groups]
    kept = plan.draw_counts(counts, seed)
    weight = net[1].weight.detach()
    reads = set(kept.get("0", torch.arange(blocks * columns)).tolist())
    writes = kept.get("1", torch.arange(blocks * rows)).tolist()
    expected = [
        [
            weight[o, i, 0, 0].item()
            for i in range(weight.shape[1])
            if o // rows * weight.shape[1] + i in reads
        ]
        for o in writes
    ]
    leaf = plan.pack({"1.weight": weight}, kept)["1.weight"]
    assert leaf[:, :, 0, 0].tolist() == expected


def test_what_is_kept_whole_is_not_copied() -> None:
    net, plan = trace(REFERENCES["digits-cnn-small"])
    params = dict(net.named_parameters())
    kept = plan.draw((0.0, 0.5, 0.0), torch.Generator())
    leaves = plan.pack(params, kept)
    shared = {name for name in params if leaves[name].data_ptr() == params[name].data_ptr()}
    assert set(params) - shared == {"conv2.weight", "norm2.weight", "norm2.bias", "conv3.weight"}
    assert not any(leaf.requires_grad for leaf in leaves.values())


def test_gradients_are_as_small_as_the_leaves() -> None:
    net, plan = trace(REFERENCES["digits-cnn-small"])
    kept = plan.draw(plan.uniform(0.5), torch.Generator())
    leaves = leaves_of(plan, net, kept)
    plan.run(leaves, kept, torch.randn(2, 1, 8, 8, dtype=torch.float64)).sum().backward()
    assert leaves["conv2.weight"].grad.shape == (16, 8, 3, 3)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_names_that_the_plan_does_not_know_are_whole() -> None:
    _, plan = trace(CASES["mlp"])
    kept = plan.draw((0.5, 0.5), torch.Generator())
    other = torch.zeros(3)
    assert gather(other, None, kept) is other
    scatter_(other, torch.ones(3), None, kept)
    assert other.tolist() == [1.0, 1.0, 1.0]
