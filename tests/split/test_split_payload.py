"""What crosses the cut: what is counted is what is encoded, and what comes out is what went in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_split import BATCH, batch, net
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.split.cut import cut
from leanfleet.split.payload import receive_activation, receive_gradient, send_activation, send_gradient
from leanfleet.wire import Message, encode


def activations(seed: int, zeros: float, shape: tuple[int, ...] = (3, 4, 4)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, *shape, generator=generator)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < zeros, 0.0)


@given(
    st.integers(0, 99),
    st.sampled_from([0.0, 0.02, 0.3, 0.99, 1.0]),
    st.sampled_from([(3, 4, 4), (7,), (2, 9)]),
    st.sampled_from([2, 256, 257, 2**16]),
)
@settings(max_examples=60)
def test_activations_and_labels_arrive_bit_for_bit(
    seed: int, zeros: float, shape: tuple[int, ...], classes: int
) -> None:
    x = activations(seed, zeros, shape)
    labels = torch.randint(0, classes, (5,), generator=torch.Generator().manual_seed(seed))
    sent = send_activation(x, labels, classes, "exact")
    got = receive_activation(sent.data, shape, classes, 5)
    assert torch.equal(got.activation, x)
    assert torch.equal(got.labels, labels)
    assert sent.authors_bytes == 4 * int((x != 0).sum())


@given(st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.99]), st.sampled_from(["bf16", "int8", "int4"]))
@settings(max_examples=30)
def test_a_client_knows_what_the_server_sees(seed: int, zeros: float, values: str) -> None:
    x = activations(seed, zeros)
    sent = send_activation(x, torch.zeros(5, dtype=torch.int64), 10, values)
    got = receive_activation(sent.data, (3, 4, 4), 10, 5)
    assert torch.equal(got.activation, sent.activation.dense())
    share = {"bf16": 2**-8, "int8": 1 / 255, "int4": 1 / 15}[values]
    assert (got.activation - x).abs().max() <= 0.51 * share * max(1.0, float(x.max())) + 1e-6
    # Both sides must agree on the places, also of values that were rounded to zero.
    assert torch.equal(_places(sent.activation), _places(got.payload))


def _places(payload: object) -> Tensor:
    positions: Tensor = payload.positions  # type: ignore[attr-defined]
    return positions


def test_the_byte_example_of_the_specification() -> None:
    x = torch.zeros(32 * 5120)
    x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:132_710]] = 1.5
    sent = send_activation(x.view(32, 20, 16, 16), torch.zeros(32, dtype=torch.int64), 10, "exact")
    assert sent.authors_bytes == 530_840
    # Bitmap and values, 32 labels, and a header.
    assert 551_320 + 32 < len(sent.data) < 551_320 + 32 + 400


@pytest.mark.parametrize("at", [1, "0.2", "0.0"])
def test_the_client_s_gradient_is_exact_though_zeros_do_not_travel(at: int | str) -> None:
    x, y = batch()
    found = cut(net(), at, x)
    activation = found.client(x)
    sent = send_activation(activation.detach(), y, 4, "exact")
    got = receive_activation(sent.data, found.shape, 4, BATCH)
    gradient = torch.randn(activation.shape, generator=torch.Generator().manual_seed(3))
    down = send_gradient(gradient, got.payload, found.rectified, "exact")
    arrived = receive_gradient(down, sent.activation, found.rectified)
    grads = [
        torch.autograd.grad(activation, list(found.client.parameters()), g, retain_graph=True)
        for g in (gradient, arrived)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert found.rectified == (at != "0.0")
    if found.rectified:
        assert (activation == 0).any()
        assert torch.equal(arrived != 0, activation.detach() != 0)
        assert 4 * len(got.payload.values) < len(down) < 4 * len(got.payload.values) + 400


@pytest.mark.parametrize("classes", [4, 300, 40_000])
def test_what_is_not_as_expected_is_refused(classes: int) -> None:
    x, labels = activations(0, 0.3), torch.zeros(5, dtype=torch.int64)
    data = send_activation(x, labels, classes, "exact").data
    refused = {
        "instead of|more than|shape|bytes|values": [(data, (3, 4, 5), 5), (data, (2, 4, 4), 5)],
        "5 samples where there must be [46]": [(data, (3, 4, 4), 4), (data, (3, 4, 4), 6)],
        "not a message|damaged|bytes": [
            (data[:-3], (3, 4, 4), 5),
            (b"", (3, 4, 4), 5),
            (b"x" * 90, (3, 4, 4), 5),
        ],
        "missing|not expected": [(encode(Message({"labels": labels})), (3, 4, 4), 5)],
    }
    for words, cases in refused.items():
        for bytes_, shape, samples in cases:
            with pytest.raises(WireError, match=words):
                receive_activation(bytes_, shape, classes, samples)
    flipped = bytearray(data)
    flipped[-9] ^= 4
    with pytest.raises(WireError, match="damaged"):
        receive_activation(bytes(flipped), (3, 4, 4), classes, 5)
    wrong = send_activation(x, labels + classes - 1, classes, "exact").data
    with pytest.raises(WireError, match=f"a label is none of the {classes - 1} classes"):
        receive_activation(wrong, (3, 4, 4), classes - 1, 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("values", ["exact", "bf16", "int8"])
def test_what_is_not_finite_is_not_sent(bad: float, values: str) -> None:
    x = activations(0, 0.3)
    up = send_activation(x, torch.zeros(5, dtype=torch.int64), 4, "exact").activation
    x.view(-1)[int(up.positions[0])] = bad
    with pytest.raises(WireError, match="finite"):
        send_activation(x, torch.zeros(5, dtype=torch.int64), 4, values)
    with pytest.raises(WireError, match="finite"):
        send_gradient(x, up, True, values)
