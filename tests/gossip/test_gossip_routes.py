"""What is left of a graph when nodes have left, and which links have a way back."""

from __future__ import annotations

import pytest
import torch
from gossip_fleet import PLAIN_SGD, Vector, distance
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import ExperimentError
from leanfleet.fleet import build_graph
from leanfleet.gossip import METHODS, GossipMethod, Setting
from leanfleet.gossip.routes import neighbours, one_way_link, without


def method(
    name: str, graph: str, nodes: int = 4, options: dict[str, object] | None = None, **more
) -> GossipMethod:
    net = Vector(torch.zeros(3))
    setting = Setting(net, build_graph(graph, nodes), steps=6, sgd=PLAIN_SGD, loss=distance, **more)
    kind = METHODS[name]
    return kind(setting, kind.Options(**(options or {})))


def test_links_without_a_way_back() -> None:
    assert one_way_link(build_graph("ring", 4)) == (0, 1)
    assert one_way_link(build_graph("undirected-ring", 4)) is None
    # Forth at one step and back at another will do; but not all its rings go back as well.
    assert one_way_link(build_graph("dynamic-ring", 4)) == (0, 2)
    assert one_way_link(build_graph("dynamic-ring", 5)) is None


def test_neighbours_at_any_time() -> None:
    assert neighbours(build_graph("exponential", 8), 0) == ([4, 6, 7], [1, 2, 4])


@given(st.sampled_from(["undirected-ring", "exponential", "complete"]), st.integers(5, 9), st.integers(0, 4))
def test_those_who_stay_keep_their_links(spec: str, nodes: int, gone: int) -> None:
    graph = build_graph(spec, nodes)
    rest = without(graph, {gone})
    others = [i for i in range(nodes) if i != gone]
    for step in range(graph.period):
        for place, node in enumerate(others):
            named = [others[j] for j in rest.out_neighbours(step, place)]
            assert named == [j for j in graph.out_neighbours(step, node) if j != gone]


def test_a_graph_that_falls_apart_is_refused() -> None:
    with pytest.raises(ExperimentError, match="graph 'ring' falls apart when 2 left for good"):
        without(build_graph("ring", 4), {2})
    assert without(build_graph("ring", 4), {}) == build_graph("ring", 4)


@pytest.mark.parametrize("announced", [True, False])
def test_only_who_is_known_to_be_gone_gets_nothing(announced: bool) -> None:
    lease = None if announced else 3
    found = method(
        "sgp", "undirected-ring", options={"lease": lease}, departures={1: 2}, announced=announced, lossy=True
    )
    assert found.column(1, 0) == {0: 1 / 3, 1: 1 / 3, 3: 1 / 3}
    late = {0: 0.5, 3: 0.5} if announced else {0: 1 / 3, 1: 1 / 3, 3: 1 / 3}
    assert found.column(2, 0) == found.column(7, 0) == late
    assert found.in_neighbours(2, 0) == ((3,) if announced else (1, 3))
    for iteration in range(8):
        assert sum(found.column(iteration, 2).values()) == pytest.approx(1)


def test_exchanges_are_numbered_through() -> None:
    found = method("sgp", "ring", options={"exchange_every": 3})
    assert [found.exchange(k) for k in range(9)] == [0, 0, 0, 1, 1, 1, 2, 3, 4]
    assert [k for k in range(9) if found.exchanges(k)] == [2, 5, 6, 7, 8]


def test_final_rounds_are_those_of_the_nodes_that_stay() -> None:
    whole, rest = (
        method("scsp", "undirected-ring", 8, departures=gone, lossy=True).final_rounds()
        for gone in ({}, {3: 0})
    )
    # A ring of eight, and the line of seven that is left of it.
    assert whole == 32
    assert rest > 2 * whole


def test_the_same_method_elsewhere_is_the_same() -> None:
    found = method("scsp", "ring", options={"density": 0.5})
    again = found.on(torch.device("cpu"))
    assert again.options == found.options
    assert again.setting.net is not found.setting.net
    assert torch.equal(again.node(0).x, found.node(0).x)
