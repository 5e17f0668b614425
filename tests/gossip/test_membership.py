"""Nodes that join, leave and crash: the ledger of mass always fits."""

from __future__ import annotations

import pytest
import torch
from gossip_fleet import disagreement, fleet_of, normal, outstanding, run, training_of, ws, xs, zs

from leanfleet.fleet import build_graph
from leanfleet.gossip.membership import Farewell, MassLedger, crash, join, leave
from leanfleet.gossip.node import Node
from leanfleet.gossip.rules import ErrorMemory, Whole
from leanfleet.gossip.sums import RunningSums
from leanfleet.randomness import numpy_generator
from leanfleet.wire import TopK

RING = build_graph("undirected-ring", 4)


def fleet(lease: int | None = None) -> list[Node]:
    return fleet_of(
        normal(4, 20),
        lambda layout: ErrorMemory(layout, TopK(0.2), 0.2),
        sums=lambda layout: RunningSums(layout, "none", lease),
    )


def lost(step: int, sender: int, receiver: int) -> bool:
    return numpy_generator(step, sender, receiver, "loss").random() < 0.3


def fits(ledger: MassLedger, nodes: list[Node], alive: list[Node]) -> bool:
    weight = sum(ws(alive))
    for sender in alive:
        for receiver in nodes:
            if sender.sums and receiver.sums and receiver.number in sender.sums.out:
                link = receiver.number, receiver.sums, sender.number
                weight += sender.sums.outstanding(*link)[1]
                if receiver not in alive:
                    weight += sender.sums.unconfirmed(*link)
    return weight == pytest.approx(ledger.total, abs=1e-9)


@pytest.mark.parametrize("split", [False, True])
def test_a_node_joins_with_the_model_of_its_sponsor(split: bool) -> None:
    nodes = fleet()
    ledger = MassLedger(4.0)
    run(nodes, RING, 5, lost)
    total = xs(nodes).sum(0)
    training = training_of(torch.zeros(20, dtype=torch.float64))
    newcomer = Node(4, training, Whole(training.layout), sums=RunningSums(training.layout))
    ledger.book(5, "node 4 joins", join(newcomer, nodes[0], split=split))
    nodes.append(newcomer)
    assert fits(ledger, nodes, nodes)
    assert torch.allclose(newcomer.z(), nodes[0].z())
    assert torch.allclose(xs(nodes).sum(0), total) == split
    run(nodes, build_graph("undirected-ring", 5), 10, lost, first=5)
    assert fits(ledger, nodes, nodes)
    assert ledger.entries == [(5, "node 4 joins", 0.0 if split else 1.0)]


@pytest.mark.parametrize("how", ["handover", "withdraw"])
def test_a_node_leaves_in_order(how: Farewell) -> None:
    nodes = fleet()
    ledger = MassLedger(4.0)
    run(nodes, RING, 5, lost)
    vector, _ = outstanding(nodes)
    mass = xs(nodes).sum(0) + vector
    leaver, others = nodes[3], nodes[:3]
    ledger.book(5, "node 3 leaves", leave(leaver, [nodes[0], nodes[2]], [nodes[2], nodes[0]], how))
    assert fits(ledger, others, others)
    assert (ledger.total == 4) == (how == "handover")
    if how == "handover":
        assert torch.allclose(xs(others).sum(0) + outstanding(others)[0], mass)
    for node in others:
        node.merge()
    run(others, build_graph("complete", 3), 30, first=5)
    assert disagreement(others) < 1e-4
    if how == "handover":
        assert torch.allclose(zs(others).mean(0), mass / 4, atol=1e-4)


def test_without_running_sums_leaving_is_handing_over() -> None:
    nodes = fleet_of(normal(3, 4), Whole)
    assert leave(nodes[2], [nodes[1]], [nodes[0]]) == 0
    assert ws(nodes[:2]) == [2, 1]
    assert torch.allclose(xs(nodes[:2]).sum(0), normal(3, 4).sum(0))


def test_a_node_crashes() -> None:
    nodes = fleet(lease=3)
    ledger = MassLedger(4.0)
    run(nodes, RING, 5, lost)
    others = nodes[:3]
    ledger.book(5, "node 3 crashes", crash(nodes[3], others))
    assert fits(ledger, nodes, others)
    for step in range(5, 20):
        boxes = {node.number: node.outbox(RING.column(step, node.number)) for node in others}
        for node in others:
            node.absorb([(i, box[node.number]) for i, box in boxes.items() if node.number in box])
        assert fits(ledger, nodes, others)
    assert all(3 not in box for box in boxes.values())
    assert sum(ws(others)) + outstanding(others)[1] == pytest.approx(ledger.total, abs=1e-9), "all is back"
