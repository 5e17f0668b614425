from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanfleet.nets.response_norm import ResponseNorm


@given(
    st.integers(1, 7), st.integers(1, 9), st.integers(0, 3), st.sampled_from([0.75, 0.5, 1.0]),
    st.floats(1e-4, 2), st.floats(0.5, 3), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_is_torchs_norm_with_its_gradient(
    size: int, channels: int, dims: int, beta: float, alpha: float, k: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, channels, *[3] * max(1, dims), dtype=torch.float64, generator=generator)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    norm = nn.LocalResponseNorm(size, alpha, beta, k)
    ours, theirs = ResponseNorm(size, alpha, beta, k)(one), norm(other)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
