"""A node trains and mixes: what methods reduce to, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from gossip_fleet import (
    Vector,
    columns,
    distance,
    exchange,
    fleet_of,
    normal,
    run,
    training_of,
    ws,
    xs,
    zs,
)
from torch import Tensor, nn

from leanfleet.errors import LeanfleetError, NetworkError, WireError
from leanfleet.fleet import Graph, build_graph
from leanfleet.gossip.descent import Sgd, Training
from leanfleet.gossip.layout import Layout
from leanfleet.gossip.node import Node, broadcasts, memory_ratio
from leanfleet.gossip.rules import ErrorMemory, Whole
from leanfleet.gossip.sums import RunningSums
from leanfleet.wire import Identity, Message, RandomK, TopK, gather, pack

NESTEROV = Sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
TARGETS = normal(4, 6, seed=7)
COMPLETE = build_graph("complete", 4)


def train(nodes: list[Node], graph: Graph, steps: int) -> None:
    for step in range(steps):
        for node in nodes:
            node.step(TARGETS[node.number], TARGETS[node.number])
        exchange(nodes, columns(graph, step))


def test_on_the_complete_graph_sgp_is_all_reduce() -> None:
    start = normal(1, 6)
    nodes = fleet_of(start.expand(4, -1), Whole, sgd=NESTEROV)
    train(nodes, COMPLETE, 10)
    central = nn.Parameter(start[0].clone())
    optimiser = torch.optim.SGD([central], 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(10):
        optimiser.zero_grad()
        torch.stack([distance(central, target) for target in TARGETS]).mean().backward()
        optimiser.step()
    assert torch.allclose(zs(nodes), central.detach().expand(4, -1), rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_z() -> None:
    node = fleet_of(normal(2, 6), Whole)[0]
    node.weight = 0.5
    z, x = node.z(), node.x.clone()
    loss = node.step(TARGETS[0], TARGETS[0])
    assert loss == pytest.approx(float(distance(z, TARGETS[0])))
    assert torch.allclose(node.x, x - 0.1 * (z - TARGETS[0]))


def test_learning_rates_follow_milestones() -> None:
    sgd = Sgd(lr=1.0, milestones=(2, 3), gamma=0.1)
    assert [sgd.lr_at(step) for step in range(5)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_d_psgd_mixes_what_was_before_the_step() -> None:
    start, ring = normal(4, 6), build_graph("undirected-ring", 4)
    nodes = fleet_of(start, Whole, weighted=False, combine_first=True)
    train(nodes, ring, 1)
    mixed = torch.from_numpy(ring.weights(0)) @ start
    assert torch.allclose(xs(nodes), mixed - 0.1 * (start - TARGETS))
    assert ws(nodes) == [1] * 4


def test_d_psgd_without_an_exchange_is_sgd() -> None:
    nodes = fleet_of(normal(4, 6), Whole, weighted=False, combine_first=True)
    alone = fleet_of(normal(4, 6), Whole)
    for node in (*nodes, *alone):
        for _ in range(3):
            node.step(TARGETS[node.number], TARGETS[node.number])
    assert torch.equal(xs(nodes), xs(alone))


def test_quasi_global_momentum() -> None:
    """As in the formula, worked out beside it, over a graph of unequal weights."""
    sgd = Sgd(lr=0.1, momentum=0.9, weight_decay=0.01)
    graph = Graph.from_edges("g", 4, [[(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]])
    start, eta = normal(4, 6), 0.5
    nodes = fleet_of(start, lambda layout: ErrorMemory(layout, TopK(1.0), eta), sgd=sgd, quasi_global=True)
    x, w, m = start.clone(), torch.ones(4, dtype=torch.float64), torch.zeros_like(start)
    mixing = torch.from_numpy(graph.weights(0)) - torch.eye(4, dtype=torch.float64)
    for _ in range(5):
        g = x / w[:, None] - TARGETS + 0.01 * x / w[:, None]
        u = g + 0.9 * (0.9 * m + g)
        x = x - 0.1 * u
        moved = eta * mixing @ x
        x, w = x + moved, w + eta * mixing @ w
        m = 0.9 * m + 0.1 * (u - moved / (0.1 * w[:, None]))
    train(nodes, graph, 5)
    assert torch.allclose(xs(nodes), x)
    assert torch.allclose(torch.tensor(ws(nodes), dtype=torch.float64), w)


def test_quasi_global_momentum_of_d_psgd_follows_the_whole_step() -> None:
    """m <- mu m + (1 - mu) (x before - x after) / lr, where x after is mixed and then takes the step."""
    sgd = Sgd(lr=0.1, momentum=0.9, weight_decay=0.0)
    ring = build_graph("undirected-ring", 4)
    x, m, mixing = normal(4, 6), torch.zeros(4, 6).double(), torch.from_numpy(ring.weights(0))
    nodes = fleet_of(x, Whole, sgd=sgd, weighted=False, combine_first=True, quasi_global=True)
    for _ in range(4):
        g = x - TARGETS
        before, x = x, mixing @ x - 0.1 * (g + 0.9 * (0.9 * m + g))
        m = 0.9 * m + 0.1 * (before - x) / 0.1
    train(nodes, ring, 4)
    assert torch.allclose(xs(nodes), x)


def test_merging_drops_the_memory_and_mixes_all() -> None:
    """Disagreement falls by the graph's eigenvalue; with the memory sent along it blows up instead."""
    graph = build_graph("ring", 8)

    def merged(keep: bool) -> tuple[float, float]:
        nodes = fleet_of(normal(8, 100), lambda layout: ErrorMemory(layout, TopK(0.05), 0.05))
        run(nodes, graph, 80)
        first = (zs(nodes) - zs(nodes).mean(0)).norm()
        for node in nodes:
            memory = node.rule.tensors()["memory"]
            node.merge()
            if keep:
                node.rule = ErrorMemory(node.layout, Identity(), 1.0)
                node.rule.memory.copy_(memory)
        after = []
        for rounds in (1, 49):
            run(nodes, graph, rounds)
            after.append(float((zs(nodes) - zs(nodes).mean(0)).norm() / first))
        return after[0], after[1]

    dropped, kept = merged(keep=False), merged(keep=True)
    assert dropped[0] < 1
    assert dropped[1] == pytest.approx(0.923880**50, rel=0.5)
    assert kept[0] > 4
    assert kept[1] > 2 * dropped[1]


def test_weights_are_reset_only_if_asked() -> None:
    for reset in (False, True):
        node = fleet_of(normal(2, 6), Whole)[0]
        node.weight = 0.5
        z = node.z()
        node.merge(reset)
        assert node.weight == (1 if reset else 0.5)
        assert torch.allclose(node.z(), z)


def test_equal_shares_are_a_broadcast() -> None:
    node = fleet_of(normal(4, 6), Whole)[0]
    found = broadcasts(node.outbox({0: 0.2, 1: 0.2, 2: 0.2, 3: 0.4}))
    assert [receivers for _, receivers in found] == [[1, 2], [3]]
    assert [m.scalars["share"] for m, _ in found] == [0.2, 0.4]
    assert node.weight == pytest.approx(0.2)


def test_who_sends_to_nobody_keeps_all() -> None:
    node = fleet_of(normal(4, 6), lambda layout: ErrorMemory(layout, TopK(0.2), 0.2))[0]
    x = node.x.clone()
    assert node.outbox({0: 1.0}) == {}
    assert torch.equal(node.x, x)
    assert memory_ratio(node.tensors()) == 0


def test_the_memory_grows_to_many_times_the_parameters() -> None:
    nodes = fleet_of(normal(4, 100), lambda layout: ErrorMemory(layout, TopK(0.05), 0.05))
    run(nodes, build_graph("ring", 4), 60)
    assert memory_ratio(nodes[0].tensors()) > 3
    assert memory_ratio(fleet_of(normal(2, 6), Whole)[0].tensors()) == 0


def random_k(layout: Layout) -> ErrorMemory:
    return ErrorMemory(layout, RandomK(0.25, "bf16"), 0.25)


def test_drawn_positions_do_not_travel_and_change_nothing() -> None:
    """Told positions, of a receiver that knows nothing of the draw, bring the same values to the same places."""
    graph, start = build_graph("exponential", 4), normal(4, 400).float()
    nodes, told = (fleet_of(start, random_k, cuts=(3, 100)) for _ in range(2))
    for node in told:
        node._draws = None
    lengths = []
    for step in range(6):
        box, other = (fleet[0].outbox(graph.column(step, 0)) for fleet in (nodes, told))
        lengths += [len(m.tensors["packed"]) for m in (*box.values(), *other.values())]
        for fleet, sent in ((nodes, box), (told, other)):
            for node in fleet[1:]:
                node.absorb([(0, sent[node.number])] if node.number in sent else [])
            fleet[0].absorb([])
    assert torch.equal(xs(nodes), xs(told))
    # Two bytes a value, and one run's header; a told position costs about three bits more.
    assert set(lengths[::2]) == {2 * 100 + 4}
    assert all(length > 2 * 100 + 4 + 99 * 3 / 8 for length in lengths[1::2])


def test_what_was_drawn_before_the_final_phase_is_understood_in_it() -> None:
    nodes = fleet_of(normal(2, 40).float(), random_k, sums=RunningSums)
    early = nodes[0].outbox({0: 0.5, 1: 0.5})[1]
    for node in nodes:
        node.merge()
    dense = nodes[0].outbox({0: 0.5, 1: 0.5})[1]
    assert [m.scalars["drawn"] for m in (early, dense)] == [True, False]
    nodes[1].absorb([(0, early), (0, dense)])
    assert nodes[1].weight == pytest.approx(2 - nodes[0].weight)


def test_drawn_values_are_checked() -> None:
    nodes = fleet_of(normal(2, 40).float(), random_k)
    sent = nodes[0].outbox({0: 0.5, 1: 0.5})[1]
    sparse = pack({"parts.0": gather(torch.zeros(10), torch.arange(5)).rounded("bf16")})
    for bad, fault in (
        (Message(sent.tensors, sent.scalars | {"drawn": False}), "values in layout"),
        (Message({"packed": sparse}, sent.scalars), "positions where they are said to be drawn"),
        (Message(sent.tensors, {n: v for n, v in sent.scalars.items() if n != "drawn"}), "scalars"),
    ):
        with pytest.raises(WireError, match=f"node 1, from node 0: .*{fault}"):
            nodes[1].absorb([(0, bad)])


def message(**scalars: float) -> Message:
    sender = fleet_of(normal(2, 6), Whole)[0]
    sent = sender.outbox({0: 0.5, 1: 0.5})[1]
    return Message(sent.tensors, sent.scalars | scalars)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (message(weight=0.0), "a push-sum weight of 0"),
        (message(weight=float("nan")), "a push-sum weight of nan"),
        (message(weight=float("inf")), "a push-sum weight of inf"),
        (message(share=1.5), "a share of 1.5"),
        (message(share=-0.5), "a share of -0.5"),
        (message(step=-1), "a step of -1"),
        (message(weight=1), "scalars .*int"),
        (message(more=1.0), "scalars .*more"),
        (Message({}, message().scalars), "tensors"),
        (Message({"packed": message().tensors["packed"][:-1]}, message().scalars), "bytes where"),
    ],
)
def test_what_no_sender_sends_is_refused_and_changes_nothing(bad: Message, fault: str) -> None:
    nodes = fleet_of(normal(2, 6), Whole)
    x = nodes[1].x.clone()
    with pytest.raises(WireError, match=f"node 1, from node 0: .*{fault}"):
        nodes[1].absorb([(0, message()), (0, bad)])
    assert torch.equal(nodes[1].x, x)
    assert nodes[1].weight == 1


class Endless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a / 0


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    training = Training(Endless(), lambda said, _: said.sum())
    node = Node(3, training, Whole(training.layout))
    with pytest.raises(LeanfleetError, match="node 3, step 0: training has diverged: its loss is inf"):
        node.step(torch.zeros(1), torch.zeros(1))


def test_too_large_a_learning_rate_is_noticed() -> None:
    nodes = fleet_of(normal(4, 6), Whole, sgd=Sgd(lr=3.0, momentum=0.0, nesterov=False))
    with pytest.raises(LeanfleetError, match=r"node \d, step \d+: training has diverged: its parameters"):
        train(nodes, COMPLETE, 20)


def test_growing_while_the_loss_falls_is_no_divergence() -> None:
    node = fleet_of(torch.zeros(1, 2), Whole, sgd=Sgd(lr=0.5, momentum=0.0, nesterov=False))[0]
    wanted = torch.full((2,), 15.0)
    for _ in range(10):
        node.step(wanted, wanted)
    assert float(node.x[0]) > 14


def test_parameters_of_several_kinds_are_refused() -> None:
    net = Vector(torch.zeros(4), cuts=(2,))
    net.parts[1].data = net.parts[1].data.double()
    with pytest.raises(NetworkError, match="parameters of one dtype, not of"):
        Layout.of(net)
    with pytest.raises(NetworkError, match="not of none"):
        Layout.of(nn.Flatten())


def test_restart_gives_the_same_bits() -> None:
    def fleet() -> list[Node]:
        return fleet_of(
            normal(4, 6), lambda layout: ErrorMemory(layout, TopK(0.3), 0.3), sgd=NESTEROV, quasi_global=True
        )

    ran, resumed = fleet(), fleet()
    train(ran, COMPLETE, 3)
    for node, other in zip(ran, resumed, strict=True):
        other.restore({name: tensor.clone() for name, tensor in node.tensors().items()})
    for nodes in (ran, resumed):
        train(nodes, COMPLETE, 3)
        for node in nodes:
            node.merge()
        exchange(nodes, columns(COMPLETE, 0))
    again = fleet()
    for node, other in zip(ran, again, strict=True):
        other.restore({name: tensor.clone() for name, tensor in node.tensors().items()})
    for nodes in (ran, again):
        exchange(nodes, columns(COMPLETE, 0))
    exchange(resumed, columns(COMPLETE, 0))
    assert torch.equal(xs(ran), xs(resumed))
    assert torch.equal(xs(ran), xs(again))


def test_training_of_a_network_leaves_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    node = Node(0, training_of(normal(1, 3)[0]), Whole(training_of(normal(1, 3)[0]).layout))
    node.step(TARGETS[0, :3], TARGETS[0, :3])
    assert torch.equal(before, torch.random.get_rng_state())
