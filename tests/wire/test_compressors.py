"""What every compressor has to pass, and the numbers of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.randomness import numpy_generator
from leanfleet.wire import (
    PACKED,
    Compressor,
    Identity,
    Message,
    Qsgd,
    RandomK,
    Sign,
    TopK,
    decode,
    describe,
    encode,
    kept_count,
    layout_bytes,
    pack,
    unpack,
)

COMPRESSORS: dict[str, Compressor] = {
    "identity": Identity(),
    "identity-bf16": Identity("bf16"),
    "identity-int8": Identity("int8"),
    "top-k": TopK(0.1),
    "top-k-bf16": TopK(0.1, "bf16"),
    "top-k-int4": TopK(0.1, "int4"),
    "random-k": RandomK(0.1),
    "random-k-int8": RandomK(0.1, "int8"),
    "qsgd": Qsgd(2),
    "qsgd-biased": Qsgd(2, biased=True),
    "sign": Sign(),
}


def qsgd_share(numel: int) -> float:
    return 1 / (1 + min(numel / 9, numel**0.5 / 3))


SHARES = {
    "identity": lambda numel: 1.0,
    "top-k": lambda numel: kept_count(0.1, numel) / numel,
    "random-k": lambda numel: kept_count(0.1, numel) / numel,
    "qsgd-biased": qsgd_share,
    "sign": lambda numel: 1 / numel,
}
"""delta of E |v - C(v)|^2 <= (1 - delta) |v|^2, where that holds."""

every = pytest.mark.parametrize("compressor", COMPRESSORS.values(), ids=COMPRESSORS)


def rng_of(*parts: int) -> np.random.Generator:
    return numpy_generator(*parts, "compress")


def vector(numel: int, seed: int = 0) -> Tensor:
    """Heavy tails, as gradients have them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=generator) ** 3


def through_the_wire(payload_of: dict[str, Tensor], compressor: Compressor) -> tuple[int, dict[str, Tensor]]:
    sent = {name: compressor.compress(tensor, rng_of(1)) for name, tensor in payload_of.items()}
    data = encode(Message({"packed": pack(sent)}))
    received = unpack(decode(data, {"packed": PACKED}).tensors["packed"], describe(payload_of))
    for name, payload in sent.items():
        assert torch.equal(received[name].dense(), payload.dense())
    return len(data), {name: payload.dense() for name, payload in received.items()}


@every
def test_the_receiver_sees_what_the_sender_thinks(compressor: Compressor) -> None:
    tensors = {"conv": vector(360).reshape(4, 10, 3, 3), "bias": vector(7), "scalar": vector(1).reshape(())}
    _, received = through_the_wire(tensors, compressor)
    assert describe(received) == describe(tensors)


@every
def test_bytes_are_header_scales_values_and_positions(compressor: Compressor) -> None:
    tensor = vector(10_000)
    payload = compressor.compress(tensor, rng_of(1))
    header_bytes = 4 if len(payload.values) < 128 else 5
    content = header_bytes + 4 * len(payload.scales) + min(layout_bytes(payload).values())
    assert len(pack({"v": payload})) == content
    bytes_up, _ = through_the_wire({"v": tensor}, compressor)
    # The one dense container: names, sizes, checksum.
    assert content < bytes_up < content + 200
    # Exact values cost no more than a dense message; others far less.
    assert content <= 40_000 + header_bytes


@every
@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(0, 50))
def test_same_stream_same_payload(compressor: Compressor, numel: int, seed: int) -> None:
    one, other = (pack({"v": compressor.compress(vector(numel), rng_of(seed))}) for _ in range(2))
    assert torch.equal(one, other)


@every
@pytest.mark.parametrize("shape", [(), (1,), (9,), (3, 4), (2, 3, 2, 2), (0,), (3, 0)])
def test_a_tensor_of_zeros_stays_zero(compressor: Compressor, shape: tuple[int, ...]) -> None:
    _, received = through_the_wire({"v": torch.zeros(shape)}, compressor)
    assert torch.equal(received["v"], torch.zeros(shape))


@every
@pytest.mark.parametrize("value", [-2.5, 1.0, 1e-30, 1e30])
def test_a_single_element(compressor: Compressor, value: float) -> None:
    sent = compressor.compress(torch.tensor([value]), rng_of(0)).dense()
    assert sent.shape == (1,)
    half = isinstance(compressor, Qsgd) and compressor.biased
    expected = value * (qsgd_share(1) if half else 1.0)
    assert float(sent) == pytest.approx(expected, rel=2**-8)


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(compressor: Compressor, value: float) -> None:
    bad = vector(50)
    bad[30] = value
    with pytest.raises(WireError, match="not finite"):
        compressor.compress(bad, rng_of(0))


@every
def test_the_tensor_is_left_alone(compressor: Compressor) -> None:
    tensor = vector(60)
    compressor.compress(tensor, rng_of(0)).received().mul_(0)
    assert torch.equal(tensor, vector(60))


@every
def test_error_memory_makes_the_sum_right(compressor: Compressor) -> None:
    """c + e_new = v, step by step: what is not sent now is sent later."""
    wanted, memory, sent = vector(40).double(), torch.zeros(40).double(), torch.zeros(40).double()
    for step in range(200):
        v = (wanted + memory).float()
        c = compressor.compress(v, rng_of(step)).dense().double()
        memory = wanted + memory - c
        sent += c
    assert torch.allclose(sent + memory, 200 * wanted)
    if not (isinstance(compressor, Qsgd) and not compressor.biased):
        assert memory.norm() < 40 * wanted.norm()


@pytest.mark.parametrize("name", SHARES)
@given(st.integers(1, 200), st.integers(0, 50))
def test_contracts(name: str, numel: int, seed: int) -> None:
    v = vector(numel, seed)
    errors = [
        float((v - COMPRESSORS[name].compress(v, rng_of(seed, repeat)).dense()).double().square().sum())
        for repeat in range(40 if name in ("random-k", "qsgd-biased") else 1)
    ]
    slack = 4 * float(np.std(errors)) / len(errors) ** 0.5 + 1e-6
    total = float(v.double().square().sum())
    assert np.mean(errors) <= (1 - SHARES[name](numel)) * total + slack * (1 + total)


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 20))
def test_qsgd_is_unbiased(numel: int, bits: int, seed: int) -> None:
    v, rng = vector(numel, seed), rng_of(seed)
    repeats = 400
    sent = torch.stack([Qsgd(bits).compress(v, rng).dense() for _ in range(repeats)])
    step = float(v.norm()) / (2**bits - 1)
    # A level is off by at most one step: a variance of at most a quarter of its square.
    assert ((sent.mean(0) - v).abs() <= 6 * step / 2 / repeats**0.5).all()


def test_qsgd_by_hand() -> None:
    v = torch.tensor([3.0, -4.0])
    sent = torch.stack([Qsgd(2).compress(v, rng_of(seed)).dense() for seed in range(300)])
    scaled = sent * 3 / 5  # levels of 1.8 and 2.4
    assert set(scaled[:, 0].round(decimals=4).tolist()) == {1.0, 2.0}
    assert set(scaled[:, 1].round(decimals=4).tolist()) == {-2.0, -3.0}
    biased = Qsgd(2, biased=True).compress(v, rng_of(5)).dense()
    assert torch.allclose(biased, 0.818182 * Qsgd(2).compress(v, rng_of(5)).dense())


def test_top_k_with_error_memory_by_hand() -> None:
    """Sparse-Push's first vector: the same four values at every step, one of them sent."""
    x, memory = torch.tensor([4.0, -3, 2, 1]), torch.zeros(4)
    sent = []
    for _ in range(4):
        payload = TopK(0.25).compress(x + memory, rng_of(0))
        memory = x + memory - payload.dense()
        assert payload.positions is not None
        sent.append((float(payload.values), int(payload.positions)))
    assert sent == [(4, 0), (-6, 1), (8, 0), (8, 2)]
    assert memory.tolist() == [4, -6, 0, 4]


@pytest.mark.parametrize(
    ("density", "numel", "kept"),
    [(1 - 0.9, 640, 64), (0.01, 640, 6), (0.01, 16, 1), (0.001, 0, 0), (1.0, 7, 7), (0.1, 1, 1)],
)
def test_how_many_are_kept(density: float, numel: int, kept: int) -> None:
    assert kept_count(density, numel) == kept
    for compressor in (TopK(density), RandomK(density)):
        assert len(compressor.compress(torch.ones(numel), rng_of(0)).values) == kept


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_is_a_share(density: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        TopK(density).compress(torch.ones(3), rng_of(0))


@pytest.mark.parametrize("bits", [0, 16])
def test_qsgd_has_1_to_15_bits(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 15"):
        Qsgd(bits)


def test_sign_by_hand() -> None:
    payload = Sign().compress(torch.tensor([3.0, -1, 0, 0]), rng_of(0))
    assert payload.dense().tolist() == [1, -1, 1, 1]
    assert layout_bytes(Sign().compress(torch.ones(1000), rng_of(0))) == {"all": 125}


def test_random_positions_are_as_likely_everywhere_and_shared_by_a_seed() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts[RandomK(0.25).positions(20, rng_of(seed)).numpy()] += 1
    assert np.abs(counts - 500).max() < 6 * (2000 * 0.25 * 0.75) ** 0.5
    tensor, compressor = vector(300), RandomK(0.25)
    payload = compressor.compress(tensor, rng_of(7))
    known = payload.values_only().at(compressor.positions(300, rng_of(7)), (300,))
    assert torch.equal(known.dense(), payload.dense())
