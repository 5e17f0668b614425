from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import DataError, ExperimentError
from leanfleet.fleet import Topology, build_graph, check_connected, load_links, parse_graph

SPECS = ("ring", "undirected-ring", "exponential", "exponential(2)", "dynamic-ring", "random(0.3)", "random(2)",
         "complete", "ring, random(0.2), exponential")  # fmt: skip


def out(graph, step=0):
    return [graph.out_neighbours(step, node) for node in range(graph.nodes)]


def single(graph):
    """Of every step the one receiver of each node."""
    return [tuple(to for (to,) in out(graph, step)) for step in range(graph.period)]


@given(st.sampled_from(SPECS), st.integers(3, 20), st.integers(0, 2**31))
def test_every_graph_is_connected_and_the_same_for_the_same_seed(spec, nodes, seed):
    graph = build_graph(spec, nodes, seed)
    assert (graph.name, graph.nodes) == (spec, nodes)
    check_connected(graph)
    assert graph == build_graph(spec, nodes, seed)


@given(st.integers(2, 12))
def test_rings_and_the_complete_graph(nodes):
    every = range(nodes)
    assert out(build_graph("ring", nodes)) == [((i + 1) % nodes,) for i in every]
    around = [tuple(sorted({(i + 1) % nodes, (i - 1) % nodes})) for i in every]
    assert out(build_graph("undirected-ring", nodes)) == around
    assert out(build_graph("complete", nodes)) == [tuple(j for j in every if j != i) for i in every]


@pytest.mark.parametrize(
    ("nodes", "distances"), [(2, [1]), (4, [1, 2]), (6, [1, 2, 4]), (8, [1, 2, 4]), (9, [1, 2, 4, 8])]
)
def test_the_exponential_graph_doubles_its_distance(nodes, distances):
    graph = build_graph("exponential", nodes)
    assert single(graph) == [tuple((i + d) % nodes for i in range(nodes)) for d in distances]


def test_the_exponential_graph_with_more_peers():
    graph = build_graph("exponential(2)", 10)
    assert [graph.out_neighbours(step, 0) for step in range(graph.period)] == [(1, 2), (3, 6), (8, 9)]
    # i + 6 is i itself among six.
    assert [build_graph("exponential(2)", 6).out_neighbours(step, 0) for step in range(2)] == [(1, 2), (3,)]


def test_the_dynamic_ring_of_the_author_code():
    assert single(build_graph("dynamic-ring", 4)) == [(1, 2, 3, 0), (3, 0, 1, 2), (2, 3, 1, 0)]
    assert single(build_graph("dynamic-ring", 8, seed=5)) == [
        (1, 2, 3, 4, 5, 6, 7, 0),
        (7, 0, 1, 2, 3, 4, 5, 6),
        (2, 5, 4, 6, 7, 3, 0, 1),
        (6, 7, 0, 5, 2, 1, 3, 4),
        (3, 4, 7, 1, 6, 0, 2, 5),
        (5, 3, 6, 0, 1, 7, 4, 2),
    ]


@given(st.integers(2, 20), st.integers(0, 2**31))
def test_every_step_of_a_dynamic_ring_is_a_ring_and_the_next_one_goes_back(nodes, seed):
    steps = single(build_graph("dynamic-ring", nodes, seed))
    for step in steps:
        node, visited = 0, set()
        while node not in visited:
            visited.add(node)
            node = step[node]
        assert len(visited) == nodes
    if nodes not in (4, 8):
        assert len(steps) == 6
        for forth, back in zip(steps[::2], steps[1::2], strict=True):
            assert all(back[forth[node]] == node for node in range(nodes))


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 4), (3, 3), (4, 5)])
def test_the_torus_is_closed_on_both_sides(rows, columns):
    graph = build_graph(f"torus({rows}x{columns})", rows * columns)
    for node in range(graph.nodes):
        row, column = divmod(node, columns)
        around = {((row + 1) % rows, column), ((row - 1) % rows, column),
                  (row, (column + 1) % columns), (row, (column - 1) % columns)}  # fmt: skip
        assert graph.out_neighbours(0, node) == tuple(sorted(r * columns + c for r, c in around))
    assert graph.doubly_stochastic


@given(st.integers(3, 40), st.integers(0, 2**31), st.data())
def test_random_graphs_hold_a_ring_and_their_mean_degree(nodes, seed, data):
    degree = data.draw(st.integers(1, nodes - 1))
    graph = build_graph(f"random({degree})", nodes, seed)
    assert sum(map(len, out(graph))) == degree * nodes
    assert all((i + 1) % nodes in to for i, to in enumerate(out(graph)))


def test_random_graphs_are_irregular_and_have_the_probability_asked_for():
    graph = build_graph("random(0.3)", 200)
    extra = sum(map(len, out(graph))) - 200
    assert extra / (200 * 198) == pytest.approx(0.3, abs=0.01)
    assert len({len(to) for to in out(graph)}) > 10
    assert not graph.doubly_stochastic
    assert out(graph) != out(build_graph("random(0.3)", 200, seed=1))


def test_random_graphs_of_a_sequence_differ():
    graph = build_graph("random(2), random(2), ring", 12)
    assert graph.period == 3
    assert len({graph.phases[k] for k in range(3)}) == 3
    assert graph.phases[0] == build_graph("random(2)", 12).phases[0]


def test_a_thousand_nodes():
    for spec, links in (("ring", 1000), ("random(4)", 4000), ("torus(25x40)", 4000)):
        assert sum(map(len, out(build_graph(spec, 1000)))) == links
    assert build_graph("exponential", 1000).period == 10


def test_parsing_gives_names_and_arguments():
    assert parse_graph(" ring ") == (Topology("ring"),)
    assert parse_graph("exponential") == (Topology("exponential", (1.0,)),)
    assert parse_graph("torus( 2 x 4 ), random(.5)") == (
        Topology("torus", (2.0, 4.0)),
        Topology("random", (0.5,)),
    )
    assert parse_graph("file:a, b.csv") == (Topology("file", (), Path("a, b.csv")),)
    assert parse_graph("file(20): x.csv") == (Topology("file", (20.0,), Path("x.csv")),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rnig", "graph 'rnig' is unknown; did you mean 'ring'?"),
        (
            "star",
            "graph 'star' is unknown; known: complete, dynamic-ring, exponential, file:PATH, random, ring, ",
        ),
        ("", "graph '' is unknown; known: "),
        ("ring, tours(2x4)", "graph 'ring, tours(2x4)': 'tours(2x4)' is unknown; did you mean 'torus'?"),
        ("ring,", "graph 'ring,': '' is unknown; known: "),
        ("ring(3)", "graph 'ring(3)': ring takes no argument; write 'ring'"),
        ("exponential(0)", "graph 'exponential(0)' cannot be read; write for example exponential(2), peers"),
        ("torus", "graph 'torus' cannot be read; write for example torus(2x4), rows and columns from 2"),
        ("torus(8)", "graph 'torus(8)' cannot be read; write for example torus(2x4)"),
        ("torus(1x8)", "graph 'torus(1x8)' cannot be read; write for example torus(2x4)"),
        (
            "random",
            "graph 'random' cannot be read; write for example random(0.3), the probability of a link, or",
        ),
        ("random()", "graph 'random()' cannot be read; write for example random(0.3)"),
        ("random(0)", "graph 'random(0)' cannot be read; write for example random(0.3)"),
        ("random(-1)", "graph 'random(-1)' cannot be read; write for example random(0.3)"),
        ("file", "graph 'file' cannot be read; write file:PATH, or file(20):PATH for a period of 20 steps"),
        ("file:", "graph 'file:' cannot be read; write file:PATH"),
        ("file(0):x.csv", "graph 'file(0):x.csv' cannot be read; write file:PATH"),
        ("file(1000000):x.csv", "graph 'file(1000000):x.csv' cannot be read; write file:PATH"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(spec, message):
    with pytest.raises(ExperimentError) as told:
        parse_graph(spec)
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("spec", "nodes", "message"),
    [
        ("ring", 1, "graph 'ring' needs at least 2 nodes, not 1"),
        ("torus(2x4)", 10, "graph 'torus(2x4)' is for 8 nodes, not 10"),
        ("ring, torus(3x3)", 8, "graph 'ring, torus(3x3)' is for 9 nodes, not 8"),
        ("random(8)", 8, "graph 'random(8)' needs more than 8 nodes, not 8"),
        ("exponential(4)", 4, "graph 'exponential(4)' needs more than 4 nodes, not 4"),
    ],
)
def test_what_does_not_fit_the_number_of_nodes_is_refused(spec, nodes, message):
    with pytest.raises(ExperimentError) as told:
        build_graph(spec, nodes)
    assert str(told.value) == message


def written(folder: Path, *lines: str) -> Path:
    path = folder / "links.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_file_lists_links_step_by_step(tmp_path):
    path = written(tmp_path, "from,to,step,note", "0,1,0,a", "2,0,3,", "1,2,0,", "1,0,3,")
    graph = load_links(path, 3)
    assert graph.period == 4
    assert [out(graph, step) for step in range(5)] == [
        [(1,), (2,), ()],
        [(), (), ()],
        [(), (), ()],
        [(), (0,), (0,)],
        [(1,), (2,), ()],
    ]
    check_connected(graph)
    assert build_graph(f"file:{path}", 3) == graph
    longer = build_graph(f"file(6):{path}", 3)
    assert (longer.period, longer.out_neighbours(3, 2), longer.out_neighbours(4, 0)) == (6, (0,), ())
    assert longer == load_links(path, 3, period=6)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("step,from", "0,1"), "line 1: no column 'to'; the first line must be 'step,from,to'"),
        ((), "line 1: no column 'step'"),
        (("step,from,to",), "holds no links"),
        (("step,from,to", "0,0,1", "1,x,0"), "line 3: .* must be whole numbers from 0, not 1, x, 0"),
        (("step,from,to", "0,0"), "line 2: .* must be whole numbers from 0, not 0, 0, "),
        (("step,from,to", "-1,0,1"), "line 2: .* must be whole numbers from 0"),
        (("step,from,to", "0.5,0,1"), "line 2: .* must be whole numbers from 0"),
        (("step,from,to", "0,0,3"), "line 2: no node 3; nodes are 0 to 2"),
        (("step,from,to", "0,1,1"), "line 2: node 1 sends to itself"),
        (("step,from,to", "0,0,1", "0,1,2", "0,0,1"), "line 4: the same link as in line 2; leave it out"),
        (("step,from,to", "100000,0,1"), "line 2: step 100000 is not below 100000, the most there may be"),
        (("step,from,to", '0,"0,1'), "cannot be read as a CSV file of links"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, lines, message):
    path = written(tmp_path, *lines)
    with pytest.raises(DataError, match=rf"links\.csv.*{message}"):
        load_links(path, 3)


def test_a_step_beyond_the_period_or_a_missing_file_is_named(tmp_path):
    path = written(tmp_path, "step,from,to", "0,0,1", "5,1,0")
    with pytest.raises(DataError, match="line 3: step 5 is not below 5, the period"):
        build_graph(f"file(5):{path}", 2)
    with pytest.raises(DataError, match=r"no\.csv: cannot be read: No such file"):
        build_graph(f"file:{tmp_path}/no.csv", 2)
    path.write_bytes(b"step,from,to\n\xff\xfe")
    with pytest.raises(DataError, match=r"links\.csv: cannot be read as a CSV file"):
        load_links(path, 2)
