from __future__ import annotations

import torch
from torch import nn

from leanfleet.nets import build, forward_macs


def test_macs_are_of_one_sample_however_many_are_shown() -> None:
    for count in (1, 3):
        assert forward_macs(build("digits-cnn-small"), torch.zeros(count, 1, 8, 8)) == 460_416


def test_the_network_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    assert forward_macs(net.train(), torch.ones(4, 3)) == 6
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_functions_count_like_layers() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, torch.ones(4, 3, 3, 3)).flatten(1) @ torch.ones(16, 5)

    assert forward_macs(Own(), torch.ones(2, 3, 4, 4)) == 4 * 3 * 9 * 4 + 16 * 5
