"""A small split setting that tests of steps and methods share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanfleet.split import METHODS, Setting, SplitMethod, cut

CLIENTS, CLASSES, BATCH = 3, 4, 12


def net(norms: bool = False) -> nn.Sequential:
    """Two convolutions and a linear layer; `norms` puts a batch norm in each half."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [nn.Conv2d(2, 6, 3, padding=1), *([nn.BatchNorm2d(6)] if norms else [])]
        second = [nn.Conv2d(6, 4, 3), *([nn.BatchNorm2d(4)] if norms else [])]
        return nn.Sequential(
            nn.Sequential(*first, nn.ReLU(), nn.LocalResponseNorm(3, alpha=0.1), nn.MaxPool2d(2)),
            nn.Sequential(*second, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, CLASSES)),
        )


def method(name: str = "adasplit", norms: bool = False, **options: Any) -> SplitMethod[Any]:
    kind = METHODS[name]
    found = cut(net(norms), 1, torch.zeros(2, 2, 8, 8))
    setting = Setting(found, CLIENTS, CLASSES, 10, 5, 1e-2, 1e-5, BATCH, 0)
    return kind(setting, kind.Options(**options))


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(BATCH, 2, 8, 8, generator=generator), torch.arange(BATCH) % CLASSES


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())
