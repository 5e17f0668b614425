from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanfleet.nets import build
from leanfleet.split.response_norm import ResponseNorm, with_fast_norms


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
    ours, theirs = ResponseNorm.of(norm)(one), norm(other)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_known_values() -> None:
    norm = ResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1.0)
    found = norm(torch.arange(100.0, 601.0, 100.0).view(1, 6, 1, 1)).flatten().tolist()
    assert found == pytest.approx([52.0419, 60.8306, 56.1815, 50.0, 44.8710, 58.2944], abs=5e-5)


def test_networks_keep_their_parameters_and_what_they_say() -> None:
    net, fast = build("lenet"), with_fast_norms(build("lenet"))
    assert not any(type(m) is nn.LocalResponseNorm for m in fast.modules())
    assert list(net.state_dict()) == list(fast.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), fast(x))
