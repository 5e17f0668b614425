import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import ExperimentError
from leanfleet.fleet import Graph, build_graph, consensus, final_rounds, second_eigenvalue, sequence


def by_the_product(graph: Graph) -> float:
    """The definition, for products that neither underflow nor have an eigenvalue 0 of several vectors."""
    product = np.eye(graph.nodes)
    for step in range(graph.period):
        product = graph.weights(step) @ product
    return float(np.sort(np.abs(np.linalg.eigvals(product)))[-2] ** (1 / graph.period))


@given(st.integers(3, 12), st.integers(1, 3), st.integers(0, 5))
def test_the_second_eigenvalue_is_that_of_the_product_over_a_period(nodes, phases, seed):
    graph = build_graph(", ".join(["ring", *["random(0.2)"] * (phases - 1)]), nodes, seed)
    expected = by_the_product(graph)
    assert second_eigenvalue(graph) == pytest.approx(expected, abs=1e-3 if expected < 0.1 else 1e-9)


@pytest.mark.parametrize(
    ("nodes", "value", "rounds", "after_50"),
    [
        (4, 0.707107, 20, 3e-8),
        (5, 0.809017, 33, 2.5e-5),
        (8, 0.923880, 88, 0.019),
        (16, 0.980785, 357, 0.38),
        (32, 0.995185, 1432, 0.79),
    ],
)
def test_the_directed_ring_as_in_the_specification(nodes, value, rounds, after_50):
    graph = build_graph("ring", nodes)
    second = second_eigenvalue(graph)
    assert second == pytest.approx(math.cos(math.pi / nodes), abs=1e-12)
    assert second == pytest.approx(value, abs=1e-6)
    assert final_rounds(graph) == rounds
    assert second**50 == pytest.approx(after_50, rel=0.03)


@pytest.mark.parametrize(("nodes", "value", "rounds"), [(8, 0.804738, 32), (16, 0.949253, 133)])
def test_the_undirected_ring_as_in_the_specification(nodes, value, rounds):
    graph = build_graph("undirected-ring", nodes)
    assert second_eigenvalue(graph) == pytest.approx(value, abs=1e-6)
    assert final_rounds(graph) == rounds


@pytest.mark.parametrize("spec", ["random(3)", "torus(20x20)", "dynamic-ring", "ring, random(3)"])
def test_of_many_nodes_the_largest_eigenvalue_alone_is_looked_for(spec):
    graph = build_graph(spec, 400)
    assert second_eigenvalue(graph) == pytest.approx(by_the_product(graph), abs=1e-9)


def test_without_scipy_it_takes_longer(monkeypatch):
    graph = build_graph("torus(2x151)", 302)
    with_scipy = second_eigenvalue.__wrapped__(graph)
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    assert second_eigenvalue.__wrapped__(graph) == pytest.approx(with_scipy, abs=1e-9)
    # The package has a function of the same name.
    monkeypatch.setattr(sys.modules["leanfleet.fleet.consensus"], "_MANY_NODES", graph.nodes - 1)
    with pytest.raises(ExperimentError, match="pip install scipy"):
        second_eigenvalue.__wrapped__(graph)


def test_large_regular_graphs_have_a_closed_form():
    assert second_eigenvalue(build_graph("ring", 10_000)) == pytest.approx(
        math.cos(math.pi / 10_000), abs=1e-13
    )
    undirected = second_eigenvalue(build_graph("undirected-ring", 10_000))
    assert undirected == pytest.approx((1 + 2 * math.cos(math.pi / 5_000)) / 3, abs=1e-13)
    assert final_rounds(build_graph("exponential", 4096)) == 12


@pytest.mark.parametrize("power", [1, 2, 3, 4, 5])
def test_the_exponential_graph_averages_exactly_in_a_period(power):
    graph = build_graph("exponential", 2**power)
    assert second_eigenvalue(graph) == 0
    assert final_rounds(graph) == graph.period == power
    assert consensus(graph).steps == consensus(graph, 1e-12).steps == power
    product = np.eye(2**power)
    for step in range(power):
        product = graph.mix(step, product)
    assert (product == 2.0**-power).all()


def test_the_exponential_graph_of_six_as_in_the_specification():
    assert second_eigenvalue(build_graph("exponential", 6)) == pytest.approx(0.600, abs=5e-4)


@given(st.integers(2, 12))
def test_the_complete_graph_averages_at_once(nodes):
    graph = build_graph("complete", nodes)
    assert (second_eigenvalue(graph), final_rounds(graph), consensus(graph).steps) == (0, 1, 1)


def test_values_that_become_equal_only_after_several_periods_are_waited_for():
    # Its product is no average, but its square is: an eigenvalue 0 of two vectors.
    links = [
        [(0, 1), (1, 0)],
        [(1, 2), (2, 1)],
        [(0, 1), (1, 0), (2, 3), (3, 2)],
        [(0, 2), (2, 0), (1, 3), (3, 1)],
    ]
    graph = sequence("late", [Graph.from_edges("late", 4, [links[0]]), Graph.from_edges("late", 4, links)])
    assert second_eigenvalue(graph) == 0
    assert final_rounds(graph) == consensus(graph, 1e-3).steps == 5
    jordan = build_graph("ring, random(2)", 4)
    assert second_eigenvalue(jordan) == 0
    assert final_rounds(jordan) == consensus(jordan, 1e-12).steps == 2 * jordan.period


@given(st.sampled_from(["ring", "random(2)", "exponential"]), st.integers(3, 8), st.integers(2, 5))
def test_holding_phases_of_a_static_graph_changes_nothing(spec, nodes, steps):
    graph = build_graph(spec, nodes)
    if len(graph.phases) == 1:
        assert second_eigenvalue(graph.held(steps)) == pytest.approx(second_eigenvalue(graph), abs=1e-6)
    assert second_eigenvalue(graph.held(steps)) <= 1


def test_a_long_period_does_not_underflow():
    # 0.5^5000 is far below the least number there is.
    links = [[(i, (i + 1 + step % 2) % 5) for i in range(5)] for step in range(5000)]
    assert second_eigenvalue(Graph.from_edges("two", 5, links[:2])) == pytest.approx(0.5, abs=1e-12)
    assert second_eigenvalue(Graph.from_edges("long", 5, links)) == pytest.approx(0.5, abs=1e-9)


def test_a_graph_in_two_parts_never_agrees():
    graph = Graph.from_edges("parts", 4, [[(0, 1), (1, 0), (2, 3), (3, 2)]])
    assert second_eigenvalue(graph) == 1
    assert consensus(graph, limit_steps=100).steps is None
    with pytest.raises(ExperimentError, match=r"'parts', 4 nodes: no number of rounds"):
        final_rounds(graph)


def test_lost_messages_and_a_finer_tolerance_take_more_rounds():
    ring = build_graph("ring", 8)
    exact = math.log(1e-3) / math.log(math.cos(math.pi / 8))
    assert final_rounds(ring, loss_rate=0.2) == math.ceil(exact / 0.8) == 110
    assert final_rounds(ring, 1e-6) == math.ceil(2 * exact)
    # Far more than 3 / 0.8: what the graph does in three steps it does only if none of their messages is lost.
    assert 25 < final_rounds(build_graph("exponential", 8), loss_rate=0.2) < 40


@given(st.integers(3, 12), st.integers(0, 20))
def test_what_is_measured_is_near_what_the_eigenvalue_says(nodes, seed):
    graph = build_graph("random(2)", nodes, seed)
    found = consensus(graph, 1e-9, seed)
    second = second_eigenvalue(graph)
    assert found.steps is not None
    # Eigenvectors of a matrix that is not symmetric may first let disagreement grow, but not for ever.
    assert found.steps <= final_rounds(graph, 1e-9) + 4 * nodes
    if second > 0.5:
        assert found.steps >= 0.7 * final_rounds(graph, 1e-9) - 4 * nodes
    assert 0 < found.weight_low <= 1 <= found.weight_high < nodes


def test_weights_stay_one_on_regular_graphs_only():
    ring = consensus(build_graph("ring", 8))
    assert (ring.weight_low, ring.weight_high) == (1, 1)
    three = consensus(Graph.from_edges("three", 3, [[(0, 1), (0, 2), (1, 2), (2, 0)]]), 1e-12)
    # On the way to 1, 2/3 and 4/3 the third node has more in the second step.
    assert three.weight_low == pytest.approx(2 / 3, abs=0.02)
    assert three.weight_high == pytest.approx(49 / 36, abs=1e-12)


def test_the_limit_is_kept():
    ring = build_graph("ring", 8)
    needed = consensus(ring).steps
    assert consensus(ring, limit_steps=needed).steps == needed
    assert consensus(ring, limit_steps=needed - 1).steps is None
