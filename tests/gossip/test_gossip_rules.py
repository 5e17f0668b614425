"""Mixing rules: the vectors and tables of the specification, and what holds for all of them."""

from __future__ import annotations

import pytest
import torch
from gossip_fleet import (
    COMPRESSORS,
    columns,
    disagreement,
    exchange,
    fleet_of,
    normal,
    run,
    training_of,
    weights,
    ws,
    xs,
    zs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.errors import LeanfleetError
from leanfleet.fleet import Graph, build_graph
from leanfleet.gossip.rules import ErrorMemory, Estimates, Whole
from leanfleet.randomness import numpy_generator
from leanfleet.wire import Compressor, Identity, TopK, kept_count

THREE = Graph.from_edges("three", 3, [[(0, 1), (0, 2), (1, 2), (2, 0)]])
RING = build_graph("ring", 8)


def vectors(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_error_memory_sends_what_has_waited_longest() -> None:
    layout = training_of(vectors((4, -3, 2, 1))[0]).layout
    rule, x = ErrorMemory(layout, TopK(0.25), 1.0), vectors((4, -3, 2, 1))[0]
    sent = [rule.offer(x, numpy_generator(0)).basis for _ in range(4)]
    assert [
        (part.positions.tolist(), part.values.tolist()) for part in sent if part.positions is not None
    ] == [
        ([0], [4]),
        ([1], [-6]),
        ([0], [8]),
        ([2], [8]),
    ]
    assert rule.memory.tolist() == [4, -6, 0, 4]


STEPS = [
    (
        [(0.5, 0), (0.5, 4.5), (-4, 4.5)],
        [(0, 0), (0, 0), (0, 3)],
        [0.916667, 0.916667, 1.166667],
    ),
    (
        [(0.333333, 1.875), (0.583333, 3.375), (-3.916667, 3.75)],
        [(0, 0), (0.5, 0), (-4, 0)],
        [0.902778, 0.840278, 1.256944],
    ),
    (
        [(-1.645833, 1.25), (0.583333, 2.84375), (-1.9375, 4.90625)],
        [(0.333333, 0), (1.083333, 0), (0, 3.75)],
        [0.916088, 0.780671, 1.303241],
    ),
]


def test_three_agents_step_by_step() -> None:
    start = vectors((3, 0), (0, 6), (-6, 3))
    nodes = fleet_of(start, lambda layout: ErrorMemory(layout, TopK(0.5), 0.5))
    for step, (x, memory, weight) in enumerate(STEPS):
        exchange(nodes, columns(THREE, step))
        assert torch.allclose(xs(nodes), vectors(*x), atol=1e-5)
        memories = torch.stack([node.rule.tensors()["memory"] for node in nodes])
        assert torch.allclose(memories, vectors(*memory), atol=1e-5)
        assert ws(nodes) == pytest.approx(weight, abs=1e-5)
        assert torch.allclose(xs(nodes).sum(0), vectors((-3, 9))[0], atol=1e-12)
        assert sum(ws(nodes)) == pytest.approx(3, abs=1e-12)


def test_on_an_irregular_graph_z_reaches_the_mean_and_x_does_not() -> None:
    nodes = fleet_of(vectors((3, 0), (0, 6), (-6, 3)), Whole)
    run(nodes, THREE, 60)
    assert ws(nodes) == pytest.approx([1, 2 / 3, 4 / 3])
    assert torch.allclose(zs(nodes), vectors((-1, 3)))
    assert torch.allclose(xs(nodes), vectors((-1, 3), (-2 / 3, 2), (-4 / 3, 4)))


@pytest.mark.parametrize("compressor", COMPRESSORS.values(), ids=COMPRESSORS)
@given(data=st.data(), eta=st.floats(0.01, 1), seed=st.integers(0, 100))
@settings(max_examples=10)
def test_mixing_moves_mass_and_makes_none(
    compressor: Compressor, data: st.DataObject, eta: float, seed: int
) -> None:
    start = normal(4, 15, seed)
    for rule in (ErrorMemory, Estimates):
        nodes = fleet_of(start, lambda layout, rule=rule: rule(layout, compressor, eta), cuts=(3, 4))
        for _ in range(3):
            exchange(nodes, data.draw(weights(4)))
            assert torch.allclose(xs(nodes).sum(0), start.sum(0), rtol=0, atol=1e-12)
            assert sum(ws(nodes)) == pytest.approx(4, abs=1e-12)
            if rule is Estimates:
                break  # its in-neighbours may not change


@pytest.mark.parametrize("compressor", COMPRESSORS.values(), ids=COMPRESSORS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_what_is_not_sent_is_remembered(compressor: Compressor, seed: int) -> None:
    layout = training_of(normal(1, 40, seed)[0], cuts=(3, 4, 30)).layout
    rule = ErrorMemory(layout, compressor, 1.0)
    for step in range(3):
        x, before = normal(1, 40, seed + step)[0], rule.memory.clone()
        offer = rule.offer(x, numpy_generator(seed, step))
        sent = layout.zeros()
        offer.basis.add_to_(sent)
        assert torch.allclose(sent + rule.memory, x + before, rtol=0, atol=1e-12)
        if isinstance(compressor, TopK):
            counts = [len(payload.values) for payload in offer.payloads.values()]
            assert counts == [kept_count(0.2, size) for size in (3, 1, 26, 10)]


@given(seed=st.integers(0, 100))
@settings(max_examples=10)
def test_without_compression_the_memory_changes_nothing(seed: int) -> None:
    """density = eta = 1 is SGP."""
    start = normal(3, 6, seed)
    plain = fleet_of(start, Whole)
    run(plain, THREE, 5)
    for compressor in (Identity(), TopK(1.0)):
        nodes = fleet_of(start, lambda layout, compressor=compressor: ErrorMemory(layout, compressor, 1.0))
        run(nodes, THREE, 5)
        assert torch.allclose(xs(plain), xs(nodes), rtol=0, atol=1e-14)
        assert ws(plain) == ws(nodes)


@given(seed=st.integers(0, 100))
@settings(max_examples=5)
def test_on_regular_graphs_weights_change_nothing(seed: int) -> None:
    """With w = 1 it is DeepSqueeze."""
    start = normal(8, 6, seed)
    push, squeeze = (
        fleet_of(start, lambda layout: ErrorMemory(layout, TopK(0.2), 0.2), weighted=weighted)
        for weighted in (True, False)
    )
    for nodes in (push, squeeze):
        run(nodes, RING, 4)
    assert torch.equal(xs(push), xs(squeeze))
    assert ws(push) == pytest.approx([1.0] * 8)


SIZE = 1000


def floor(
    graph: Graph, eta: float, steps: int, *, near: float = 0.1, offset: float = 0.0, size: int = SIZE
) -> float:
    """Where disagreement ends, as a share of that of normally distributed values.

    It does not depend on where it begins, so nodes may begin `near` each other to be there soon.
    """
    start = normal(graph.nodes, size)
    middle = start.mean(0)
    nodes = fleet_of(
        middle + near * (start - middle) + offset, lambda layout: ErrorMemory(layout, TopK(0.1), eta)
    )
    run(nodes, graph, steps)
    return disagreement(nodes) / float((start - middle).norm())


@pytest.mark.parametrize(
    ("graph", "eta", "expected", "steps", "near"),
    [("ring", 0.1, 0.070, 60, 0.1), ("ring", 0.5, 0.77, 90, 1.0), ("exponential", 0.1, 0.141, 60, 0.1)],
)
def test_floor_of_disagreement(graph: str, eta: float, expected: float, steps: int, near: float) -> None:
    """Sparse-Push with eta = density = 0.1 stays at 7 to 14 % of the first disagreement; a larger eta is worse."""
    assert floor(build_graph(graph, 8), eta, steps, near=near) == pytest.approx(expected, rel=0.2)


def test_floor_rises_with_the_size_of_the_parameters() -> None:
    graph = build_graph("exponential", 8)
    near, far = (floor(graph, 0.1, 50, offset=offset, size=100) for offset in (0.0, 5.0))
    assert far > 4 * near


def test_choco_has_hardly_a_floor() -> None:
    nodes = fleet_of(normal(8, 100), lambda layout: Estimates(layout, TopK(0.1), 0.1))
    first = disagreement(nodes)
    run(nodes, build_graph("random(3)", 8, seed=1), 120)
    assert max(ws(nodes)) > 1.2
    assert disagreement(nodes) < 0.005 * first


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_too_large_a_step_is_noticed(graph: str) -> None:
    nodes = fleet_of(normal(8, SIZE), lambda layout: ErrorMemory(layout, TopK(0.1), 1.0))
    with pytest.raises(
        LeanfleetError, match=r"node \d, step 0: training has diverged: .*lower \[method\] eta"
    ):
        run(nodes, build_graph(graph, 8), 400)
    assert bool(torch.isfinite(xs(nodes)).all())
