"""Networks that shuffle channels between blocks, for `odd_networks`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedShuffle(nn.Module):
    """Grouped convolutions around channel shuffles, one written as views, one as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.second = nn.Conv2d(32, 16, 1, groups=4)
        self.shuffle = nn.ChannelShuffle(2)
        self.third = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(self.stem(x)))
        n, c, h, w = x.size()
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = self.shuffle(torch.relu(self.second(torch.relu(x))))
        return self.head(self.third(x).mean((2, 3)))


def shuffled(vector: Tensor, blocks: int) -> Tensor:
    return vector.view(blocks, -1).t().reshape(-1)


def shuffle_reads(f) -> dict[str, Tensor]:
    return {
        "first": f("stem"), "second": shuffled(f("first"), 4), "third": shuffled(f("second"), 2), "head": f("third"),
    }  # fmt: skip


class ShuffleUnits(nn.Module):
    """ShuffleNetV2: half of the channels pass, half are worked on, then all are shuffled; two such units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.b = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for branch in (self.a, self.b):
            x = self.stem(x) if branch is self.a else x
            left, right = x.chunk(2, dim=1)
            x = F.channel_shuffle(torch.cat([left, branch(right)], 1), 2)
        return self.head(x.mean((2, 3)))


def units_reads(f) -> dict[str, Tensor]:
    # After the first shuffle channels of `stem` and `a` alternate: the left half are the first four of each.
    stem = torch.cat([f("stem"), f("stem#2"), f("stem#3")])
    a = torch.cat([f("a.0"), f("a.0#2")])
    first = shuffled(torch.cat([stem[:8], a]), 2)
    second = shuffled(torch.cat([first[:8], f("b")]), 2)
    return {"a.0": stem[8:], "b": first[8:], "head": second}
