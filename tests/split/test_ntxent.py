from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.split.ntxent import ntxent

TAU = 0.07
FOUR = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]]


def wide(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def written_out(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The definition, a pair at a time."""
    batch = range(len(labels))
    s = torch.cosine_similarity(embeddings.unsqueeze(1), embeddings.unsqueeze(0), dim=2) / temperature
    terms = [
        torch.stack([s[i, p], *(s[i, n] for n in batch if labels[n] != labels[i])]).logsumexp(0) - s[i, p]
        for i in batch
        for p in batch
        if p != i and labels[p] == labels[i]
    ]
    return torch.stack(terms).mean()


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Embeddings and labels with at least one positive and one negative pair."""
    labels = [0, 0, 1, *draw(st.lists(st.integers(0, 3), max_size=9))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    # Of two numbers at least: a single one is now and then too near 0 to have a direction.
    scale = draw(st.sampled_from([1e-2, 1.0, 1e3]))
    x = scale * torch.randn(len(labels), draw(st.integers(2, 5)), dtype=torch.float64, generator=generator)
    return x, torch.tensor(labels)[torch.randperm(len(labels), generator=generator)]


@pytest.mark.parametrize(
    ("rows", "labels", "at_007", "at_05"),
    [
        (FOUR, [0, 0, 1, 1], 0.0279325421, 0.4301902771),
        ([*FOUR, [2.0, 1.0]], [0, 0, 1, 1, 0], 0.0155164039, 0.4396085779),
        (FOUR[:3], [0, 0, 1], 0.0279273965, 0.3484579966),
        ([[1.0, 1.0]] * 4, [0, 0, 1, 1], math.log(3), math.log(3)),
        (FOUR, [2, 2, 2, 2], 0.0, 0.0),
        (FOUR, [3, 1, 0, 2], 0.0, 0.0),
    ],
)
def test_known_values(rows: list[list[float]], labels: list[int], at_007: float, at_05: float) -> None:
    for temperature, expected in ((TAU, at_007), (0.5, at_05)):
        assert ntxent(wide(rows), torch.tensor(labels), temperature).item() == pytest.approx(
            expected, abs=1e-10
        )


def test_known_gradient() -> None:
    q = wide(FOUR).requires_grad_()
    ntxent(q, torch.tensor([0, 0, 1, 1]), TAU).backward()
    expected = wide([[0, -0.116354], [-0.256118, 0.341491], [0.426864, 0], [-0.093083, -0.069812]])
    torch.testing.assert_close(q.grad, expected, atol=1e-6, rtol=0)


@given(batches(), st.sampled_from([0.05, TAU, 0.5, 2.0]))
@settings(max_examples=60, deadline=None)
def test_is_the_definition_with_its_gradient(batch: tuple[Tensor, Tensor], temperature: float) -> None:
    found, expected = (batch[0].clone().requires_grad_() for _ in range(2))
    ours, theirs = ntxent(found, batch[1], temperature), written_out(expected, batch[1], temperature)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
    ours.backward()
    theirs.backward()
    assert found.grad is not None
    scale = found.detach().norm()  # the gradient goes as 1 over the embeddings' length
    torch.testing.assert_close(found.grad * scale, expected.grad * scale, atol=1e-9, rtol=1e-7)


@given(batches(), st.sampled_from([TAU, 0.5]))
@settings(max_examples=30, deadline=None)
def test_is_the_loss_of_pytorch_metric_learning(batch: tuple[Tensor, Tensor], temperature: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = losses.NTXentLoss(temperature=temperature)(*batch)
    torch.testing.assert_close(ntxent(*batch, temperature), theirs, atol=1e-10, rtol=1e-10)


@given(batches(), st.floats(1e-2, 1e2), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_length_order_and_names_of_labels_do_not_matter(
    batch: tuple[Tensor, Tensor], length: float, seed: int
) -> None:
    x, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    again = ntxent(length * x[order], 7 - 2 * labels[order], TAU)
    torch.testing.assert_close(again, ntxent(x, labels, TAU), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [3, 1, 0, 2], [0], []])
@pytest.mark.parametrize("value", [1.0, 0.0, math.nan, math.inf])
def test_nothing_to_contrast_is_zero_with_a_gradient_of_zero(labels: list[int], value: float) -> None:
    q = torch.full((len(labels), 3), value, requires_grad=True)
    loss = ntxent(q, torch.tensor(labels, dtype=torch.int64), TAU)
    loss.backward()
    assert loss.item() == 0.0
    assert q.grad is not None
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_a_zero_vector_has_cosine_zero_and_a_finite_gradient() -> None:
    q = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    loss = ntxent(q, labels, TAU)
    loss.backward()
    # Both positive pairs and their negatives are at cosine 0.
    assert loss.item() == pytest.approx(math.log(2))
    assert q.grad is not None
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1e15])
def test_extreme_lengths_stay_finite_in_single_precision(size: float) -> None:
    q = (size * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1e-3]])).requires_grad_()
    loss = ntxent(q, torch.tensor([0, 0, 1]), 0.01)
    loss.backward()
    assert loss.isfinite()
    assert q.grad is not None
    assert q.grad.isfinite().all()
