"""Rounds to agreement over links that lose messages."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leanfleet.fleet import Graph, build_graph, consensus, final_rounds
from leanfleet.fleet.lossy import lossy_rounds


@pytest.mark.parametrize("spec", ["ring", "exponential", "random(3)", "dynamic-ring"])
def test_without_losses_it_is_dense_push_sum(spec: str) -> None:
    graph = build_graph(spec, 8)
    measured = consensus(graph).steps
    assert measured is not None
    assert lossy_rounds(graph, 1e-3, 0.0) == pytest.approx(measured, rel=0.15, abs=1)


def test_more_losses_take_more_rounds() -> None:
    graph = build_graph("exponential", 8)
    found = [lossy_rounds(graph, 1e-3, rate) for rate in (0.0, 0.05, 0.2, 0.5)]
    assert found[0] == 3
    assert found == sorted(set(found))


def test_late_messages_take_more_rounds_less_than_lost_ones() -> None:
    graph = build_graph("exponential", 8)
    late = [lossy_rounds(graph, 1e-3, 0.0, rate) for rate in (0.0, 0.2, 0.5)]
    lost = [lossy_rounds(graph, 1e-3, rate) for rate in (0.0, 0.2, 0.5)]
    assert late == sorted(set(late))
    assert all(a <= b for a, b in zip(late, lost, strict=True))
    assert final_rounds(graph, late_rate=0.5) == late[-1]


def test_when_every_message_is_late_rounds_are_those_of_the_delayed_ring() -> None:
    """x_i(k+1) = x_i(k) / 2 + x_{i-1}(k-1) / 2: factors are the roots of m^2 = m / 2 + w / 2, w an eighth root of 1."""
    roots = np.concatenate([np.roots([1, -0.5, -0.5 * np.exp(2j * np.pi * k / 8)]) for k in range(1, 8)])
    expected = math.log(1e-3) / math.log(np.abs(roots).max())
    ring = build_graph("ring", 8)
    assert lossy_rounds(ring, 1e-3, 0.0, 1.0) == pytest.approx(expected, rel=0.1)
    assert 3 < expected / final_rounds(ring) < 3.5


def test_on_a_static_graph_losses_only_take_their_share() -> None:
    """So the quotient of the specification is kept there, and is no less than what is simulated."""
    ring = build_graph("ring", 8)
    assert lossy_rounds(ring, 1e-3, 0.2) == pytest.approx(final_rounds(ring) / 0.8, rel=0.1)
    assert final_rounds(ring, loss_rate=0.2) == 110


def test_it_gives_up() -> None:
    parts = Graph.from_edges("parts", 4, [[(0, 1), (1, 0)], [(2, 3), (3, 2)], []])
    assert lossy_rounds(parts, 1e-3, 0.1, limit_steps=50) == 50
