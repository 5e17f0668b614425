from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.wire import Levels, Payload, gather, sparse, whole
from leanfleet.wire.payload import Values

ROUNDINGS: list[Values] = ["exact", "bf16", "int8", "int4"]


def tensor_of(shape: list[int], seed: int, density: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    return 10 * torch.randn(shape, generator=generator) * mask


shapes = st.lists(st.integers(0, 4), max_size=4)
tensors = st.builds(tensor_of, shapes, st.integers(0, 99), st.sampled_from([0.0, 0.3, 1.0]))


@given(tensors)
def test_nothing_is_lost_unless_asked(tensor: Tensor) -> None:
    for payload in (whole(tensor), sparse(tensor)):
        assert payload.rounded("exact") is payload
        assert torch.equal(payload.dense(), tensor)
        assert payload.dense().dtype == tensor.dtype


@given(tensors)
def test_bfloat16_is_off_by_at_most_half_a_unit_in_the_last_place(tensor: Tensor) -> None:
    error = sparse(tensor).rounded("bf16").dense() - tensor
    assert (error.abs() <= tensor.abs() * 2.0**-8).all()


@given(tensors, st.sampled_from([("int8", 127), ("int4", 7)]))
def test_levels_are_off_by_at_most_half_a_step(tensor: Tensor, rounding: tuple[Values, int]) -> None:
    values, steps = rounding
    error = sparse(tensor).rounded(values).dense() - tensor
    peak = float(tensor.abs().max()) if tensor.numel() else 0.0
    assert (error.abs() <= peak / steps / 2 * 1.0001).all()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.sampled_from([0.3, 1.0]))
def test_a_channel_with_its_own_scale_does_not_feel_the_others(
    samples: int, channels: int, seed: int, density: float
) -> None:
    tensor = tensor_of([samples, channels, 2, 3], seed, density)
    tensor[0, 0] *= 1000
    # After ReLU, no bit is spent on a sign.
    for wanted, steps in ((tensor, 127), (tensor.abs(), 255)):
        for payload in (sparse(wanted), whole(wanted)):
            rounded = payload.rounded("int8", per="channel")
            assert rounded.scales.shape == (samples * channels,)
            error = (rounded.dense() - wanted).abs().amax((2, 3))
            assert (error <= wanted.abs().amax((2, 3)) / steps / 2 * 1.0001).all()


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((), 1), ((5,), 1), ((5, 3), 5), ((5, 3, 2), 15), ((5, 3, 2, 2), 15), ((0, 3, 2), 0)],
)
def test_how_many_scales(shape: tuple[int, ...], scales: int) -> None:
    assert len(whole(torch.ones(shape)).rounded("int8", per="channel").scales) == scales


def test_examples_of_levels() -> None:
    assert sparse(torch.tensor([0.0, 127, -64.4])).rounded("int8").values.tolist() == [127, -64]
    relu = sparse(torch.tensor([0.0, 15, 3.4])).rounded("int4", per="channel")
    assert relu.levels == Levels(4, signed=False, per_channel=True)
    assert relu.dense().tolist() == [0, 15, 3]
    # The smallest scale underflows; what it stood for does not become NaN.
    assert whole(torch.tensor([1e-45, 0.0])).rounded("int8").dense().tolist() == [0, 0]


@given(tensors, st.sampled_from(ROUNDINGS))
def test_a_receiver_that_knows_the_positions_needs_values_only(tensor: Tensor, values: Values) -> None:
    """AdaSplit: the gradient goes down at the positions that were not zero on the way up."""
    up = sparse(tensor)
    gradient = torch.ones_like(tensor)
    down = gather(gradient, up.positions).rounded(values)
    travelling = down.values_only()
    assert travelling.shape == (int((tensor != 0).sum()),)
    assert travelling.positions is None
    assert torch.equal(travelling.at(up.positions, up.shape).dense(), down.dense())
    assert torch.allclose(down.dense(), gradient * (tensor != 0))


def test_values_with_many_scales_do_not_travel_alone() -> None:
    with pytest.raises(ValueError, match="without their positions"):
        whole(torch.ones(2, 2, 2)).rounded("int8", per="channel").values_only()


def test_a_payload_does_not_change_with_its_tensor() -> None:
    for make in (whole, sparse):
        tensor = torch.ones(3)
        payload = make(tensor)
        tensor.zero_()
        assert payload.dense().tolist() == [1, 1, 1]


def test_negative_zeros_are_zeros() -> None:
    payload = sparse(torch.tensor([-0.0, 1.0]))
    assert payload.positions is not None
    assert payload.positions.tolist() == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    tensor = torch.tensor([1.0, value])
    for make in (whole, sparse, lambda t: gather(t, torch.tensor([1]))):
        with pytest.raises(WireError, match="not finite"):
            make(tensor)


def test_what_would_overflow_is_refused() -> None:
    with pytest.raises(WireError, match="not finite"):
        whole(torch.tensor([3.4e38])).rounded("bf16")


@pytest.mark.parametrize("payload", [whole(torch.arange(3)), whole(torch.ones(3)).rounded("int8")])
def test_what_cannot_be_rounded(payload: Payload) -> None:
    with pytest.raises(WireError, match="cannot be rounded"):
        payload.rounded("bf16")


@pytest.mark.parametrize("bits", [0, 17])
def test_levels_have_1_to_16_bits(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        Levels(bits, signed=True)
