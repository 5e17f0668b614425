"""Local response norm, many times as fast as torch's on a CPU, where LeNet would spend half of its time on it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ResponseNorm(nn.LocalResponseNorm):
    """`nn.LocalResponseNorm` by sums over shifted channels, up to rounding.

    Torch pools a volume, and remembers every step for the backward pass: 56 ms for 32 samples of 20x32x32, one
    thread; this takes 4 ms.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, ...] to the same shape."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            # Plain operations, which exporters understand.
            return x * _power(_divisor(x, self.size, self.alpha, self.k), self.beta)
        result: Tensor = _Norm.apply(x, self.size, self.alpha, self.beta, self.k)  # type: ignore[no-untyped-call]
        return result


class _Norm(torch.autograd.Function):
    """y = x d^-beta with d = k + alpha / size * (sum of squares over neighbouring channels)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        d = _divisor(x, size, alpha, k)
        scale = _power(d, beta)
        ctx.save_for_backward(x, d, scale)
        ctx.setting = size, alpha, beta
        return x * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, d, scale = ctx.saved_tensors
        size, alpha, beta = ctx.setting
        # Every channel hears from those whose sums it is in: the window the other way round.
        sums = _sums((gradient * x).mul_(scale).div_(d), (size - 1) // 2, size)
        return (gradient * scale).sub_(sums.mul_(x), alpha=2 * beta * alpha / size), None, None, None, None


def _divisor(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    return _sums(x * x, size // 2, size).mul_(alpha / size).add_(k)


def _sums(x: Tensor, before: int, size: int) -> Tensor:
    """Return sums over `size` neighbouring channels, the first of them so many before each channel."""
    channels = x.shape[1]
    padded = F.pad(x, (*[0, 0] * (x.ndim - 2), before, size - 1 - before))
    total = padded[:, :channels].clone(memory_format=torch.preserve_format)
    for shift in range(1, size):
        total += padded[:, shift : shift + channels]
    return total


def _power(d: Tensor, beta: float) -> Tensor:
    if beta != 0.75:
        return d.pow(-beta)
    root = d.rsqrt()
    return root.sqrt().mul_(root)
