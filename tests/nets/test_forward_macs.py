from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.nets import NETWORKS, build, forward_macs


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


class Mixed(nn.Module):
    """Layers and functions that torch counts each in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose1d(6, 6, 3, padding=1)
        self.heads = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(self.up(self.depthwise(x))).chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.einsum("bij,bkj->bik", y, y)


def test_counts_are_those_of_torch() -> None:
    nets = {name: (build(name), NETWORKS[name].shape) for name in ("femnist-cnn", "lenet", "resnet-20-small")}
    for name, (net, shape) in {**nets, "mixed": (Mixed(), (6, 8))}.items():
        x = torch.zeros(1, *shape)
        with torch.no_grad(), FlopCounterMode(display=False) as torchs:
            net.eval()(x)
        assert 2 * forward_macs(net, x) == torchs.get_total_flops() > 0, name


def test_counting_loads_no_compiler() -> None:
    code = (
        "import sys, torch; from leanfleet.nets import build, forward_macs\n"
        "forward_macs(build('digits-cnn-small'), torch.zeros(1, 1, 8, 8))\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_attention_layers_count_what_is_in_them() -> None:
    """In use, torch has them computed in one piece, of which it has no formula."""
    net = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(32, 3)
    )
    tokens, width = 4, 8
    linear = tokens * (3 * width * width + width * width + 2 * 16 * width)
    assert forward_macs(net, torch.zeros(2, tokens, width)) == linear + 2 * tokens * tokens * width + 32 * 3
    assert torch.backends.mha.get_fastpath_enabled()
