from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leanfleet.split.adam import Adam


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 2), (4,), ())]


def gradients(step: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(step)
    # The second has none at first: its moments and its count of steps begin later.
    return [torch.randn(p.shape, generator=generator) if i != 1 or step > 2 else None
            for i, p in enumerate(parameters())]  # fmt: skip


def walk(optimiser: Adam | torch.optim.Adam, own: list[Tensor], steps: range) -> None:
    for step in steps:
        for p, g in zip(own, gradients(step), strict=True):
            p.grad = g
        optimiser.step()


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_is_torchs_adam_bit_for_bit(decay: float) -> None:
    ours, theirs = parameters(), parameters()
    walk(Adam.of(ours, 1e-2, decay), ours, range(6))
    walk(torch.optim.Adam(theirs, 1e-2, weight_decay=decay, fused=True), theirs, range(6))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, parameters(), strict=True))


def test_goes_on_from_its_moments() -> None:
    whole, parted = parameters(), parameters()
    walk(Adam.of(whole, 1e-2, 1e-2), whole, range(6))
    first, second = Adam.of(parted, 1e-2, 1e-2), Adam.of(parted, 1e-2, 1e-2)
    walk(first, parted, range(4))
    saved = {name: t.clone() for name, t in first.moments().items()}
    second.restore({**saved, "net.weight": torch.zeros(1)})
    walk(second, parted, range(4, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))
    assert set(saved) == {f"adam/{i}/{name}" for i in range(3) for name in ("exp_avg", "exp_avg_sq", "step")}
    second.restore({})
    assert second.moments() == {}


def test_without_gradients_nothing_moves() -> None:
    own = parameters()
    optimiser = Adam.of(own, 1e-2, 1e-2)
    own[0].grad = torch.ones(3, 2)
    optimiser.forget_gradients()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(own, parameters(), strict=True))
