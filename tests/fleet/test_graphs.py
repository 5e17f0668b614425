import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import ExperimentError
from leanfleet.fleet import Graph, build_graph, check_connected, sequence, shortest_window

# The specification's three agents: 0 -> 1, 0 -> 2, 1 -> 2, 2 -> 0.
THREE = Graph.from_edges("three", 3, [[(0, 1), (0, 2), (1, 2), (2, 0)]])


@st.composite
def graphs(draw, connected=False):
    """Any links in any phases; connected: with those of a ring, dealt to phases at will."""
    nodes = draw(st.integers(2, 9))
    phases = draw(st.integers(1, 4))
    node = st.integers(0, nodes - 1)
    edges = [draw(st.lists(st.tuples(node, node).filter(lambda e: e[0] != e[1]))) for _ in range(phases)]
    if connected:
        for i in range(nodes):
            edges[draw(st.integers(0, phases - 1))].append((i, (i + 1) % nodes))
    return Graph.from_edges("drawn", nodes, edges).held(draw(st.integers(1, 3)))


@given(graphs(), st.integers(0, 30))
def test_columns_sum_to_one_and_every_node_keeps_a_share(graph, step):
    weights = graph.weights(step)
    assert weights.dtype == np.float64
    assert weights.shape == (graph.nodes, graph.nodes)
    assert np.allclose(weights.sum(axis=0), 1, rtol=0, atol=1e-15)
    assert (np.diag(weights) > 0).all()
    for node in range(graph.nodes):
        column = graph.column(step, node)
        assert {i: weights[i, node] for i in np.flatnonzero(weights[:, node])} == column
        assert set(column) == {node, *graph.out_neighbours(step, node)}
        # As much for itself as for each receiver.
        assert set(column.values()) == {1 / len(column)}


@given(graphs(), st.integers(0, 30))
def test_who_hears_is_who_was_sent_to(graph, step):
    pairs = {(i, j) for i in range(graph.nodes) for j in graph.out_neighbours(step, i)}
    assert pairs == {(j, i) for i in range(graph.nodes) for j in graph.in_neighbours(step, i)}
    for node in range(graph.nodes):
        for neighbours in (graph.out_neighbours(step, node), graph.in_neighbours(step, node)):
            assert node not in neighbours
            assert list(neighbours) == sorted(set(neighbours))


@given(graphs(), st.integers(0, 30))
def test_a_graph_repeats_itself_after_its_period(graph, step):
    assert graph.period == len(graph.phases) * graph.hold_steps
    for node in range(graph.nodes):
        assert graph.out_neighbours(step, node) == graph.out_neighbours(step + graph.period, node)
        assert graph.in_neighbours(step, node) == graph.in_neighbours(step + graph.period, node)
    assert graph.phase(step) == graph.phase(step // graph.hold_steps * graph.hold_steps)


@given(graphs(), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_mixing_is_the_matrix_and_loses_nothing(graph, step, seed):
    values = np.random.default_rng(seed).standard_normal((graph.nodes, 3))
    mixed = graph.mix(step, values)
    assert np.allclose(mixed, graph.weights(step) @ values, rtol=0, atol=1e-12)
    assert np.allclose(mixed.sum(axis=0), values.sum(axis=0), rtol=0, atol=1e-12)
    assert np.allclose(graph.mix(step, values[:, 0]), mixed[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["ring", "exponential", "random(4)", "random(0.4)"])
def test_mixing_in_a_large_fleet_is_the_matrix_too(spec):
    graph = build_graph(spec, 100)
    values = np.random.default_rng(0).standard_normal((100, 2, 3))
    for step in range(graph.period):
        expected = np.einsum("ij,jkl->ikl", graph.weights(step), values)
        assert np.allclose(graph.mix(step, values), expected, rtol=0, atol=1e-12)


@given(graphs(connected=True), st.integers(0, 2**32 - 1))
def test_push_sum_keeps_its_mass_and_reaches_the_mean(graph, seed):
    x = np.random.default_rng(seed).standard_normal((graph.nodes, 2))
    w, mean = np.ones((graph.nodes, 1)), x.mean(axis=0)
    first = np.linalg.norm(x - mean)
    # A share of 1/9 or more goes once round within nine periods.
    for step in range(2000):
        x, w = graph.mix(step, x), graph.mix(step, w)
        if step < 50:
            assert np.allclose(x.sum(axis=0), graph.nodes * mean, rtol=0, atol=1e-11)
            assert w.sum() == pytest.approx(graph.nodes, abs=1e-11)
        if np.linalg.norm(x / w - mean) <= 1e-6 * first:
            break
    assert np.linalg.norm(x / w - mean) <= 1e-6 * first


def test_three_agents_as_in_the_specification():
    assert np.allclose(
        THREE.weights(0), [[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]], rtol=0, atol=1e-16
    )
    assert not THREE.doubly_stochastic
    x, w = np.array([[3.0, 0], [0, 6], [-6, 3]]), np.ones(3)
    for step in range(60):
        x, w = THREE.mix(step, x), THREE.mix(step, w)
    assert np.allclose(w, [1, 2 / 3, 4 / 3], rtol=0, atol=1e-12)
    assert np.allclose(x / w[:, None], [(-1, 3)] * 3, rtol=0, atol=1e-12)
    # Without the weights the result would be wrong.
    assert np.allclose(x, [(-1, 3), (-2 / 3, 2), (-4 / 3, 4)], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("ring", True), ("torus(2x4)", True), ("complete", True), ("exponential", True), ("random(2)", False)],
)
def test_rows_sum_to_one_where_all_hear_as_many_as_they_send_to(spec, expected):
    graph = build_graph(spec, 8)
    assert graph.doubly_stochastic is expected
    sums = [graph.weights(step).sum(axis=1) for step in range(graph.period)]
    assert np.allclose(sums, 1) is expected


def test_a_graph_without_links_mixes_nothing():
    alone = Graph.from_edges("alone", 3, [[]])
    assert (alone.weights(7) == np.eye(3)).all()
    assert alone.out_neighbours(0, 1) == alone.in_neighbours(0, 1) == ()


def test_a_graph_travels_to_a_worker():
    graph = build_graph("random(3)", 20)
    assert graph.in_neighbours(0, 0)
    graph.mix(0, np.ones(20))
    again = pickle.loads(pickle.dumps(graph))
    assert again == graph
    assert again.in_neighbours(0, 5) == graph.in_neighbours(0, 5)


def test_phases_are_held():
    graph = build_graph("exponential", 8).held(3)
    assert graph.period == 9
    assert [graph.out_neighbours(step, 0) for step in range(10)] == [(1,)] * 3 + [(2,)] * 3 + [(4,)] * 3 + [
        (1,)
    ]


def test_a_sequence_takes_turns():
    slow = build_graph("ring", 4).held(2)
    both = sequence("both", [slow, build_graph("complete", 4)])
    assert [len(both.out_neighbours(step, 0)) for step in range(6)] == [1, 1, 3, 1, 1, 3]
    with pytest.raises(ExperimentError, match=r"'odd': needs graphs of equally many nodes, not of \[4, 5\]"):
        sequence("odd", [build_graph("ring", 4), build_graph("ring", 5)])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ((1, (((),),)), "needs at least 2 nodes, not 1"),
        ((2, ()), "needs at least one phase"),
        ((2, (((1,), (0,)),), 0), "held for at least one step"),
        ((2, (((1,),),)), "phase 0: has out-neighbours of 1 nodes, not of 2"),
        ((2, (((1,), ()), ((), (1,)))), "phase 1: node 1 sends to itself"),
        ((3, (((2, 1), (), ()),)), "the out-neighbours of node 0 are not rising"),
        ((2, (((5,), ()),)), "node 0 sends to 5; nodes are 0 to 1"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(how, message):
    with pytest.raises(ExperimentError, match=f"graph 'odd'.*{message}"):
        Graph("odd", *how)


@pytest.mark.parametrize("edge", [(0, 2), (2, 0), (-1, 0), (1, 1)])
def test_a_link_that_cannot_be_is_refused(edge):
    with pytest.raises(ExperimentError, match="graph 'odd'"):
        Graph.from_edges("odd", 2, [[edge]])


def reaches_all(graph, steps):
    """Whether everybody reaches everybody over the links of these steps: powers of their matrix."""
    union = sum(graph.weights(step) for step in steps) > 0
    return (np.linalg.matrix_power(union.astype(float), graph.nodes) > 0).all()


@given(graphs(connected=True))
def test_the_shortest_window_is_enough_from_any_step_and_a_shorter_one_is_not(graph):
    window = shortest_window(graph)
    assert 1 <= window <= graph.period
    starts = range(graph.period)
    assert all(reaches_all(graph, range(start, start + window)) for start in starts)
    check_connected(graph, window)
    if window > 1:
        assert not all(reaches_all(graph, range(start, start + window - 1)) for start in starts)
        with pytest.raises(ExperimentError, match=f"take a window of at least {window}$"):
            check_connected(graph, window - 1)


@given(graphs())
def test_a_graph_passes_if_and_only_if_everybody_reaches_everybody(graph):
    if reaches_all(graph, range(graph.period)):
        check_connected(graph)
    else:
        for check in (check_connected, shortest_window):
            with pytest.raises(ExperimentError, match="cannot be reached from"):
                check(graph)


@pytest.mark.parametrize(("nodes", "window"), [(4, 2), (8, 3), (16, 4), (6, 3), (5, 1)])
def test_windows_of_the_exponential_graph(nodes, window):
    graph = build_graph("exponential", nodes)
    assert shortest_window(graph) == window
    # From the first step of a phase of ten to the first step of the last one that is needed.
    assert shortest_window(graph.held(10)) == 10 * (window - 1) + 1


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 1), (1, 0), (1, 2)], "nodes 0 and 1 cannot be reached from node 2, at whatever step"),
        ([(0, 1), (1, 0), (2, 0)], "node 2 cannot be reached from nodes 0 and 1, at whatever step"),
        ([], "nodes 1 and 2 cannot be reached from node 0, at whatever step"),
    ],
)
def test_who_cannot_be_reached_is_named(edges, message):
    with pytest.raises(
        ExperimentError, match=f"^graph 'gaps', 3 nodes: {message}; add links that lead there$"
    ):
        check_connected(Graph.from_edges("gaps", 3, [edges]))


def test_of_many_who_cannot_be_reached_a_few_are_named():
    with pytest.raises(ExperimentError) as told:
        check_connected(Graph.from_edges("none", 100, [[]]))
    assert "nodes 1, 2, 3, 4, 5, 6, 7, 8 and 91 more cannot be reached from node 0," in str(told.value)


def test_a_window_that_is_too_short_is_named_with_its_first_step():
    graph = build_graph("exponential", 8)
    with pytest.raises(ExperimentError) as told:
        check_connected(graph, 2)
    assert str(told.value) == (
        "graph 'exponential', 8 nodes: nodes 1, 3, 5 and 7 cannot be reached from nodes 0, 2, 4 and 6, "
        "in a window of 2 steps from step 1; take a window of at least 3"
    )
    check_connected(graph, 3)
    check_connected(graph, 1000)
    with pytest.raises(ExperimentError, match="at least 1 step, not 0"):
        check_connected(graph, 0)
