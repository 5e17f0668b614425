"""Statistics of batch norms after the last mixing."""

from __future__ import annotations

import torch
from torch import nn

from leanfleet.gossip.norms import refresh


def test_statistics_are_plain_means_over_all_batches() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    batches = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) + seed for seed in range(4)]
    model = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model["0.running_mean"].fill_(99)
    model["0.num_batches_tracked"].fill_(7)
    refresh(net, model, batches)
    assert torch.allclose(
        model["0.running_mean"], torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-6
    )
    assert torch.allclose(model["0.running_var"], torch.stack([b.var(0) for b in batches]).mean(0), atol=1e-6)
    assert int(model["0.num_batches_tracked"]) == 4
    assert net[0].momentum == 0.1
    assert torch.equal(net[0].running_mean, torch.zeros(3))
    assert net.training


def test_without_data_or_norms_nothing_changes() -> None:
    net = nn.BatchNorm1d(3)
    model = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    refresh(net, model, [])
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in model.items())
    refresh(nn.Linear(3, 3), {}, [torch.randn(2, 3)])


def test_a_norm_alone_is_found() -> None:
    net = nn.BatchNorm1d(3)
    model = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    refresh(net, model, [torch.ones(4, 3)])
    assert torch.equal(model["running_mean"], torch.ones(3))
