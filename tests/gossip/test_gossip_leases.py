"""Neighbours that do not answer, for a time or for good."""

from __future__ import annotations

import pytest
import torch
from gossip_fleet import (
    BOTH_WAYS,
    PAIR,
    columns,
    disagreement,
    exchange,
    fleet_of,
    lossy,
    normal,
    outstanding,
    run,
    sums_with,
    training_of,
    ws,
    xs,
    zs,
)

from leanfleet.errors import LeanfleetError
from leanfleet.fleet import build_graph
from leanfleet.gossip.counters import LEAST_WEIGHT, QUANTUM
from leanfleet.gossip.rules import Part, Whole
from leanfleet.gossip.sums import Pushed, Repair, RunningSums
from leanfleet.wire import encode


@pytest.mark.parametrize("lease", [2, 3, 5])
def test_what_was_taken_back_by_mistake_leaves_nobody_without(lease: int) -> None:
    """An answer that is lost looks like a neighbour that is gone."""
    nodes = fleet_of(normal(4, 5), Whole, sums=sums_with(lease=lease))
    for step in range(300):
        exchange(nodes, columns(BOTH_WAYS, step), step, lossy(0.3))
        assert min(ws(nodes)) >= LEAST_WEIGHT / 4
    run(nodes, BOTH_WAYS, 100, first=300)
    assert sum(ws(nodes)) + outstanding(nodes)[1] == pytest.approx(4)
    assert disagreement(nodes) < 1e-3


def test_neighbours_that_have_given_each_other_up_meet_again() -> None:
    start = (normal(4, 5) / QUANTUM).round() * QUANTUM
    nodes = fleet_of(start, Whole, sums=sums_with(lease=3))

    def cut(step: int, sender: int, receiver: int) -> bool:
        return 5 <= step < 15 and {sender, receiver} in ({0, 1}, {2, 3})

    run(nodes, BOTH_WAYS, 15, cut)
    assert [sorted(node.outbox(BOTH_WAYS.column(15, node.number))) for node in nodes] == [[3], [2], [1], [0]]
    run(nodes, BOTH_WAYS, 100, first=16)
    assert [sorted(node.outbox(BOTH_WAYS.column(116, node.number))) for node in nodes] == [
        [1, 3], [0, 2], [1, 3], [0, 2],
    ]  # fmt: skip
    assert torch.allclose(zs(nodes), start.mean(0).expand(4, -1), atol=1e-3)
    vector, weight = outstanding(nodes)
    assert torch.equal(xs(nodes).sum(0) + vector, start.sum(0))
    assert sum(ws(nodes)) + weight == pytest.approx(4)


def test_signs_of_life_add_nothing() -> None:
    nodes = fleet_of(normal(2, 5), Whole, sums=sums_with(lease=2))
    for step in range(3):
        nodes[0].outbox(PAIR.column(step, 0))
        nodes[0].absorb([])
    assert nodes[0].outbox(PAIR.column(3, 0)) == {}
    (sign,) = nodes[0].signs(PAIR.column(3, 0)).values()
    assert len(encode(sign)) < 500
    before = nodes[1].x.clone()
    nodes[1].absorb([(0, sign)])
    assert torch.equal(nodes[1].x, before)
    assert ws(nodes) == [1, 1]


def test_a_lease_stops_the_leak() -> None:
    start = normal(3, 5)
    graph = build_graph("complete", 3)
    nodes = fleet_of(start, Whole, sums=sums_with(lease=4))
    run(nodes, graph, 5)
    left = nodes[:2]
    dead = nodes[2].weight
    for step in range(40):
        boxes = {node.number: node.outbox(graph.column(step, node.number)) for node in left}
        if step > 6:
            assert 2 not in boxes[0]
        for node in left:
            node.absorb([(i, box[node.number]) for i, box in boxes.items() if node.number in box])
    # What node 2 still absorbed but could not say is taken back, too; x and w alike, so ratios stay right.
    assert sum(ws(left)) == pytest.approx(3 - dead + 2 / 3)
    assert disagreement(left) < 1e-5

    leaking = fleet_of(start, Whole, sums=sums_with())
    for step in range(20):
        boxes = {node.number: node.outbox(graph.column(step, node.number)) for node in leaking[:2]}
        for node in leaking[:2]:
            node.absorb([(i, box[node.number]) for i, box in boxes.items() if node.number in box])
    assert sum(ws(leaking[:2])) < 2 * LEAST_WEIGHT


def test_who_comes_back_is_sent_to_again() -> None:
    """What was taken back, though it had arrived, is taken from the receiver when it is there again."""
    start = (normal(2, 5) / QUANTUM).round() * QUANTUM
    nodes = fleet_of(start, Whole, sums=sums_with(lease=3))
    run(nodes, PAIR, 3)
    for step in range(3, 12):
        box = nodes[0].outbox(PAIR.column(step, 0))
        if step == 3:
            nodes[1].absorb([(0, box[1])])
        nodes[0].absorb([])
    assert nodes[0].outbox(PAIR.column(12, 0)) == {}
    for step in range(13, 80):
        exchange(nodes, columns(PAIR, step))
    vector, weight = outstanding(nodes)
    assert torch.equal(xs(nodes).sum(0) + vector, start.sum(0))
    assert sum(ws(nodes)) + weight == pytest.approx(2)
    assert disagreement(nodes) < 1e-4


def test_without_answers_nothing_can_be_taken_back() -> None:
    node = fleet_of(normal(2, 5), Whole, sums=sums_with())[0]
    node.outbox(PAIR.column(0, 0))
    with pytest.raises(LeanfleetError, match='repair = "ack", or a lease'):
        node.take_back(1)


@pytest.mark.parametrize("repair", ["none", "repeat"])
def test_one_answer_speaks_for_all_messages_before_it(repair: Repair) -> None:
    """On graphs that change answers come late, and name the last message only: x and w must go together."""
    layout = training_of(torch.zeros(20)).layout
    mine, theirs = RunningSums(layout, repair, lease=5), RunningSums(layout)
    places = torch.arange(20).view(10, 2)

    def push(sequence: int) -> Pushed:
        given = Part(places[sequence], normal(1, 2)[0])
        return mine.push(1, given, 0.5, 1.0, sequence)[2]

    for sequence in range(8):
        theirs.pull(0, push(sequence), 1.0)
    mine.heard(1, theirs.seen(0))
    taken = [mine.push(1, Part(places[n], normal(1, 2)[0]), 0.5, 1.0, n)[:2] for n in (8, 9)]
    back, weight = mine.take_back(1)
    wanted = torch.zeros(20)
    for part, _ in taken:
        wanted[part.positions] += part.values
    assert torch.equal(back.values, wanted)
    assert weight == sum(weight for _, weight in taken)
