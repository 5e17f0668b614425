"""Links that lose, delay and double messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from gossip_fleet import (
    BOTH_WAYS,
    COMPRESSORS,
    PAIR,
    box_of,
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
    weights,
    ws,
    xs,
    zs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.errors import LeanfleetError
from leanfleet.fleet import Graph, build_graph, final_rounds
from leanfleet.gossip.counters import LEAST_WEIGHT, QUANTUM
from leanfleet.gossip.descent import Sgd
from leanfleet.gossip.layout import Layout
from leanfleet.gossip.node import Node, broadcasts
from leanfleet.gossip.rules import ErrorMemory, Rule, Whole
from leanfleet.gossip.sums import Repair, RunningSums
from leanfleet.randomness import numpy_generator
from leanfleet.wire import Message, RandomK, TopK

RING = build_graph("ring", 8)


RULES: dict[str, Callable[[Layout], Rule]] = {"whole": Whole} | {
    name: partial(ErrorMemory, compressor=compressor, eta=0.2) for name, compressor in COMPRESSORS.items()
}


def sparse(layout: Layout) -> Rule:
    return ErrorMemory(layout, TopK(0.1), 0.1)


def drawn(layout: Layout) -> Rule:
    return ErrorMemory(layout, RandomK(0.2), 0.2)


def first_message(step: int, sender: int, receiver: int) -> bool:
    return (step, sender, receiver) == (0, 0, 1)


def test_a_lost_message_is_made_good_by_the_next() -> None:
    nodes = fleet_of(torch.tensor([[1.0], [3.0]]), Whole, sums=sums_with())
    for step, (x, weight) in enumerate(
        [((2, 1.5), (1, 0.5)), ((1.75, 2.25), (0.75, 1.25)), ((2, 2), (1, 1))]
    ):
        exchange(nodes, columns(PAIR, step), step, first_message)
        assert xs(nodes).flatten().tolist() == list(x)
        assert ws(nodes) == list(weight)


def test_without_running_sums_it_is_lost_for_good() -> None:
    nodes = fleet_of(torch.tensor([[1.0], [3.0]], dtype=torch.float64), Whole)
    run(nodes, PAIR, 30, first_message)
    assert sum(ws(nodes)) == pytest.approx(1.5)
    assert zs(nodes).flatten().tolist() == pytest.approx([7 / 3] * 2)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(
    seed=st.integers(0, 1000),
    repair=st.sampled_from(["none", "repeat", "ack"]),
    lease=st.sampled_from([None, 2]),
    data=st.data(),
)
@settings(max_examples=10)
def test_nothing_is_lost_whatever_links_do(
    rule: Callable[[Layout], Rule], seed: int, repair: Repair, lease: int | None, data: st.DataObject
) -> None:
    """Lost, doubled and late messages, in any order: what nodes have and what is on its way stays as it was."""
    start = (normal(4, 12, seed) / QUANTUM).round() * QUANTUM
    nodes = fleet_of(start, rule, sums=sums_with(repair, lease), cuts=(5,))
    rng, late = numpy_generator(seed, "links"), []
    for _ in range(8):
        weights_now = data.draw(weights(4))
        boxes = {node.number: box_of(node, weights_now[node.number]) for node in nodes}
        late += [
            (i, j, m) for i, box in boxes.items() for j, m in box.items() for _ in range(rng.integers(3))
        ]
        rng.shuffle(late)
        arrived, late = late[: len(late) // 2], late[len(late) // 2 :]
        for node in nodes:
            node.absorb([(i, m) for i, j, m in arrived if j == node.number])
        vector, weight = outstanding(nodes)
        assert torch.equal(xs(nodes).sum(0) + vector, start.sum(0))
        assert sum(ws(nodes)) + weight == pytest.approx(4, abs=1e-10)
        assert min(ws(nodes)) > 0


@pytest.mark.parametrize("rule", [Whole, sparse])
def test_who_hears_nothing_for_long_keeps_its_model(rule: Callable[[Layout], Rule]) -> None:
    """It gives and gets nothing; giving on, it would be left with less than sums can tell."""
    start = normal(8, 5)
    nodes = fleet_of(start, rule, sums=sums_with())
    run(nodes, RING, 400, lambda step, sender, receiver: receiver == 1)
    assert nodes[1].weight >= LEAST_WEIGHT / 2
    assert float(nodes[1].z().abs().max()) < 2 * float(start.abs().max())
    for node in nodes:
        node.merge()
    run(nodes, RING, 200, first=400)
    assert torch.allclose(zs(nodes), start.mean(0).expand(8, -1), atol=1e-3)


@pytest.mark.parametrize("rule", [Whole, sparse])
def test_what_may_be_asked_for_again_is_forgotten_in_time(rule: Callable[[Layout], Rule]) -> None:
    nodes = fleet_of(normal(4, 20), rule, sums=sums_with("ack"))
    run(nodes, BOTH_WAYS, 100, lossy(0.3))
    assert all(node.sums and len(out.unknown) <= 3 for node in nodes for out in node.sums.out.values())


def test_the_same_for_all_is_one_message() -> None:
    """What a radio sends once is there once, with running sums, too; not where each is told what was seen of it."""
    nodes = fleet_of(normal(4, 5), sparse, sums=sums_with())
    complete = build_graph("complete", 4)
    for step in range(3):
        boxes = {node.number: node.outbox(complete.column(step, node.number)) for node in nodes}
        assert all(len(broadcasts(box)) == 1 for box in boxes.values())
        for node in nodes:
            node.absorb([(i, box[node.number]) for i, box in boxes.items() if node.number in box])
    asking = fleet_of(normal(4, 5), sparse, sums=sums_with("ack"))[0]
    assert len(broadcasts(asking.outbox(complete.column(0, 0)))) == 3


def test_large_values_are_subtracted_exactly() -> None:
    start = torch.tensor([[100.3 + 1e-5], [99.0]], dtype=torch.float64)
    nodes = fleet_of(start, Whole, sums=sums_with())
    exchange(nodes, columns(PAIR, 0))
    assert float(xs(nodes).sum()) == pytest.approx(float(start.sum()), abs=1e-12)


def test_a_doubled_message_adds_nothing_and_an_old_one_is_ignored() -> None:
    nodes = fleet_of(normal(2, 4), Whole, sums=sums_with())
    first, second = (nodes[0].outbox(PAIR.column(0, 0))[1] for _ in range(2))
    nodes[1].absorb([(0, second), (0, second)])
    state = nodes[1].x.clone(), nodes[1].weight
    nodes[1].absorb([(0, first)])
    assert torch.equal(nodes[1].x, state[0])
    assert nodes[1].weight == state[1] == 1.75


def after_losses(repair: Repair | None, rate: float = 0.2) -> tuple[list[Node], float, float]:
    """Nodes after 60 sparse and 50 dense steps; disagreement and bias, as shares of the first disagreement."""
    start = normal(8, 200)
    nodes = fleet_of(start, sparse, sums=None if repair is None else sums_with(repair))
    first = disagreement(nodes)
    run(nodes, RING, 60, lossy(rate))
    for node in nodes:
        node.merge()
    run(nodes, RING, 50, lossy(rate), first=60)
    bias = float((zs(nodes).mean(0) - start.mean(0)).norm())
    return nodes, disagreement(nodes) / first, bias / first


def test_dense_rounds_deliver_what_is_outstanding() -> None:
    nodes, left, bias = after_losses("none")
    assert bias < 1e-3
    assert left < 0.03
    assert sum(ws(nodes)) == pytest.approx(8 - outstanding(nodes)[1])


@pytest.mark.parametrize(
    ("spec", "rate"), [("exponential", 0.05), ("exponential", 0.2), ("dynamic-ring", 0.2)]
)
def test_final_rounds_are_enough_when_messages_are_lost(spec: str, rate: float) -> None:
    graph, fleets = build_graph(spec, 8), 5
    rounds, left = final_rounds(graph, 1e-3, rate), []
    for seed in range(fleets):
        start = normal(8, 4, seed)
        nodes = fleet_of(start, Whole, sums=sums_with())
        run(nodes, graph, rounds, lossy(rate, seed))
        left.append(float((zs(nodes) - start.mean(0)).norm() / (start - start.mean(0)).norm()))
    assert sum(share <= 1e-3 for share in left) >= fleets - 1
    assert max(left) < 1e-2


@pytest.mark.parametrize("sums", [sums_with(), None], ids=["sums", "trusted"])
def test_final_rounds_are_enough_when_messages_are_late(sums: Callable[[Layout], RunningSums] | None) -> None:
    graph, rate, late = build_graph("exponential", 8), 0.3, list[tuple[int, int, Message]]()
    start = normal(8, 4)
    nodes = fleet_of(start, Whole, sums=sums)
    for step in range(final_rounds(graph, 1e-3, late_rate=rate)):
        sent = [
            (sender, receiver, message)
            for sender, column in columns(graph, step).items()
            for receiver, message in nodes[sender].outbox(column).items()
        ]
        delayed = [one for one in sent if lossy(rate)(step, one[0], one[1])]
        arrived = [one for one in sent if one not in delayed] + late
        for node in nodes:
            node.absorb(
                [(sender, message) for sender, receiver, message in arrived if receiver == node.number]
            )
        late = delayed
    assert float((zs(nodes) - start.mean(0)).norm() / (start - start.mean(0)).norm()) <= 1e-3


def test_without_running_sums_averages_drift() -> None:
    nodes, _, bias = after_losses(None)
    assert sum(ws(nodes)) < 0.1
    assert bias > 0.01


def biased(repair: Repair) -> float:
    """How far what nodes have is from what they had, before any dense round."""
    nodes = fleet_of(normal(4, 100), sparse, sums=sums_with(repair))
    run(nodes, BOTH_WAYS, 30, lossy(0.2))
    return float(outstanding(nodes)[0].norm())


def test_repairs_bring_lost_coordinates_sooner() -> None:
    none, repeat, ack = map(biased, ("none", "repeat", "ack"))
    assert repeat < 0.7 * none
    assert ack < 0.7 * none


def test_repairs_cost_bytes() -> None:
    def sent(repair: Repair, rate: float) -> int:
        nodes, total = fleet_of(normal(4, 200), sparse, sums=sums_with(repair)), 0
        for step in range(10):
            boxes = {node.number: node.outbox(BOTH_WAYS.column(step, node.number)) for node in nodes}
            total += sum(len(m.tensors["packed"]) for box in boxes.values() for m in box.values())
            for node in nodes:
                node.absorb(
                    [
                        (i, box[node.number])
                        for i, box in boxes.items()
                        if node.number in box and not lossy(rate)(step, i, node.number)
                    ]
                )
        return total

    assert sent("ack", 0.0) == sent("none", 0.0)
    assert sent("none", 0.0) < sent("ack", 0.2) < sent("repeat", 0.0)


def trained(protected: bool) -> tuple[float, float]:
    """How far nodes are from the best model for all of them, and the total weight, after training with losses."""
    targets = normal(4, 6, seed=7)
    sgd = Sgd(lr=0.05, momentum=0.9, weight_decay=0.0, milestones=(40, 60), gamma=0.1)
    nodes = fleet_of(normal(1, 6).expand(4, -1), Whole, sgd=sgd, sums=sums_with() if protected else None)
    for step in range(80):
        for node in nodes:
            node.step(targets[node.number], targets[node.number])
        exchange(nodes, columns(BOTH_WAYS, step), step, lossy(0.2))
    return float((zs(nodes) - targets.mean(0)).norm(dim=1).max()), sum(ws(nodes))


def test_training_with_losses_ends_at_the_same_model() -> None:
    distance_left, weight = trained(protected=True)
    assert distance_left < 0.3
    assert weight > 2


def test_training_with_losses_blows_up_without_running_sums() -> None:
    """As weight is lost, every local step grows by 1 / w."""
    with pytest.raises(LeanfleetError, match=r"diverged: .* set .* running_sums = true"):
        trained(protected=False)


def test_a_small_weight_slows_training_down() -> None:
    """Where mass is on its way, z would otherwise move by lr / w."""
    wanted = torch.full((4,), 1.0, dtype=torch.float64)
    plain, trusting = (
        fleet_of(torch.zeros(2, 4, dtype=torch.float64), Whole, sums=sums) for sums in (None, sums_with())
    )
    for node in (plain[0], trusting[0]):
        node.weight = 0.1
        node.step(wanted, wanted)
    assert torch.allclose(plain[0].x, 0.1 * wanted)
    assert torch.allclose(trusting[0].x, 0.2 * 0.1 * wanted)


def test_values_that_sums_cannot_carry_end_the_run() -> None:
    node = fleet_of(normal(2, 5) + 1e4, Whole, sums=sums_with())[0]
    with pytest.raises(LeanfleetError, match=r"node 0, step 0: .* more than running sums can carry"):
        node.outbox(PAIR.column(0, 0))


def test_trusted_links_have_nothing_to_flush() -> None:
    node = fleet_of(normal(2, 5), Whole)[0]
    with pytest.raises(LeanfleetError, match="node 0 has no running sums"):
        node.flush(1)


@pytest.mark.parametrize("repair", ["none", "repeat", "ack"])
def test_links_survive_a_restart(repair: Repair) -> None:
    graph = Graph.from_edges("g", 3, [[(0, 1), (1, 0), (1, 2), (2, 0)]])
    ran, resumed = (fleet_of(normal(3, 20), sparse, sums=sums_with(repair, lease=5)) for _ in range(2))
    run(ran, graph, 6, lossy(0.3))
    for node, other in zip(ran, resumed, strict=True):
        other.restore({name: tensor.clone() for name, tensor in node.tensors().items()})
    for nodes in (ran, resumed):
        run(nodes, graph, 6, lossy(0.3), first=6)
    assert torch.equal(xs(ran), xs(resumed))
    assert ws(ran) == ws(resumed)
    assert ran[0].tensors().keys() == resumed[0].tensors().keys()


def test_what_is_gone_is_not_heard() -> None:
    layout = training_of(normal(1, 4)[0]).layout
    nodes = fleet_of(normal(2, 4), Whole, sums=lambda _: RunningSums(layout))
    message = nodes[0].outbox(PAIR.column(0, 0))[1]
    sums = nodes[1].sums
    assert sums is not None
    sums.forget(0)
    nodes[1].absorb([(0, message)])
    assert nodes[1].weight == 1
    sums.welcome(0)
    nodes[1].absorb([(0, message)])
    assert nodes[1].weight == 1.5
