"""What every gossip method has to pass, and the options of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from leanfleet.errors import ExperimentError
from leanfleet.fleet import Graph, build_graph
from leanfleet.gossip import METHODS, SCSP, Choco, GossipMethod, Node, Setting, Sgd, SparsePush
from leanfleet.gossip.messages import TENSORS
from leanfleet.wire import decode, encode

NODES, STEPS = 4, 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def method_of(
    name: str, graph: Graph | None = None, setting: dict[str, Any] | None = None, **options: Any
) -> GossipMethod[Any]:
    kind = METHODS[name]
    told = {
        "net": network(),
        "graph": graph or build_graph("ring", NODES),
        "steps": STEPS,
        "sgd": Sgd(lr=0.05),
    }
    return kind(Setting(**(told | (setting or {}))), kind.Options(**options))


def batch(node: int, step: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(100 * node + step)
    y = torch.randint(3, (16,), generator=stream)
    return torch.randn(16, 6, generator=stream) + y[:, None], y


def iterate(method: GossipMethod[Any], nodes: list[Node], iteration: int) -> list[float]:
    """One iteration as an engine does it, every message as bytes."""
    losses = []
    if iteration < method.setting.steps:
        losses = [node.step(*batch(node.number, iteration)) for node in nodes]
    elif iteration == method.setting.steps:
        for node in nodes:
            method.begin_final(node)
    if method.exchanges(iteration):
        boxes = {
            node.number: {j: encode(m) for j, m in node.outbox(method.column(iteration, node.number)).items()}
            for node in nodes
        }
        for node in nodes:
            node.absorb(
                (i, decode(box[node.number], TENSORS, node.expects))
                for i, box in boxes.items()
                if node.number in box
            )
    return losses


def states(nodes: list[Node]) -> list[dict[str, Tensor]]:
    return [{name: tensor.clone() for name, tensor in node.tensors().items()} for node in nodes]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys()
        and all(torch.equal(t.nan_to_num(), b[name].nan_to_num()) for name, t in a.items())
        for a, b in zip(one, other, strict=True)
    )


every = pytest.mark.parametrize("name", METHODS)


@every
def test_nodes_learn_and_come_closer(name: str) -> None:
    method = method_of(name, setting={"steps": 40}, **({"density": 0.2} if "density" in fields(name) else {}))
    nodes = [method.node(i) for i in range(NODES)]
    losses = [iterate(method, nodes, k) for k in range(method.setting.steps + method.final_rounds())]
    trained = [sum(row) for row in losses if row]
    assert sum(trained[-5:]) < 0.8 * sum(trained[:5])
    assert sum(node.weight for node in nodes) == pytest.approx(NODES)
    for node in nodes:
        node.refresh([batch(node.number, 0)[0]])
        logits = method.logits(node.model(), batch(node.number, 99)[0])
        assert float((logits.argmax(1) == batch(node.number, 99)[1]).float().mean()) > 0.5


def fields(name: str) -> set[str]:
    return set(METHODS[name].Options.model_fields)


@every
def test_a_restart_gives_the_same_bits(name: str) -> None:
    options: dict[str, Any] = {"running_sums": True, "repair": "repeat"} if "repair" in fields(name) else {}
    options |= {"compressor": "random-k"} if name == "choco" else {}
    ran, resumed = (method_of(name, **options) for _ in range(2))
    total = STEPS + 3
    nodes = [ran.node(i) for i in range(NODES)]
    saved = {}
    for iteration in range(total):
        saved[iteration] = states(nodes)
        iterate(ran, nodes, iteration)
    for start in (0, 3, STEPS + 1):
        again = [resumed.node(i) for i in range(NODES)]
        for node, state in zip(again, saved[start], strict=True):
            node.restore(state)
        assert same(states(again), saved[start])
        for iteration in range(start, total):
            iterate(resumed, again, iteration)
        assert same(states(again), states(nodes))


@every
def test_all_nodes_begin_with_the_same_model_and_share_no_memory(name: str) -> None:
    method = method_of(name)
    one, other = method.node(0), method.node(1)
    assert torch.equal(one.x, other.x)
    one.step(*batch(0, 0))
    assert torch.equal(other.x, method.node(2).x)
    assert torch.equal(other.others["1.running_mean"], torch.zeros(8))
    assert all(
        torch.equal(p, q)
        for p, q in zip(method.setting.net.parameters(), network().parameters(), strict=True)
    )


IRREGULAR = Graph.from_edges("irregular", 4, [[(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]])


@pytest.mark.parametrize("name", ["d-psgd", "deepsqueeze"])
def test_without_weights_graphs_must_be_regular(name: str) -> None:
    with pytest.raises(ExperimentError, match=rf"{name} on graph 'irregular': .* need push-sum weights"):
        method_of(name, IRREGULAR)


def test_choco_wants_a_static_graph() -> None:
    with pytest.raises(ExperimentError, match="choco on graph 'exponential': needs the same neighbours"):
        method_of("choco", build_graph("exponential", 4))
    assert isinstance(method_of("choco", IRREGULAR), Choco)


def test_graphs_that_are_not_connected_are_refused() -> None:
    with pytest.raises(ExperimentError, match="cannot be reached"):
        method_of("sgp", Graph.from_edges("broken", 3, [[(0, 1), (1, 0), (2, 0)]]))


@pytest.mark.parametrize(
    ("options", "eta"),
    [
        ({}, 0.01),
        ({"density": 0.1}, 0.1),
        ({"density": 0.1, "eta": 0.15}, 0.15),
        ({"compressor": "none"}, 1.0),
        ({"compressor": "random-k", "density": 0.05}, 0.05),
        ({"compressor": "qsgd", "eta": 0.3}, 0.3),
        ({"compressor": "sign", "eta": 0.01}, 0.01),
    ],
)
def test_the_consensus_step_is_the_density(options: dict[str, Any], eta: float) -> None:
    method = method_of("sparse-push", **options)
    assert method.eta == eta
    assert method.node(0).rule.eta == eta
    assert method.warnings() == []


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"compressor": "sign"}, 'eta: compressor = "sign" needs one'),
        ({"compressor": "qsgd", "eta": 0.1, "values": "bf16"}, "values: do not go with"),
        ({"eta": 0.1}, "eta = 0.1: 10 times the density of 0.01 diverges"),
        ({"running_sums": False, "repair": "ack"}, "running_sums = false: does not go with"),
        ({"quasi_global": True, "exchange_every": 2}, "quasi_global: goes with exchange_every = 1"),
        ({"eta": 1.5}, "less than or equal to 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        SparsePush.Options(**options)


def test_a_large_consensus_step_is_warned_of_and_can_be_forced() -> None:
    assert "eta = 0.05 is 5 times the density" in method_of("sparse-push", eta=0.05).warnings()[0]
    assert method_of("sparse-push", eta=0.02).warnings() == []
    assert len(method_of("sparse-push", eta=0.5, force_eta=True).warnings()) == 1


def test_links_that_lose_messages_get_running_sums() -> None:
    lossy = {"lossy": True}
    for name in ("sgp", "sparse-push", "scsp"):
        assert method_of(name).node(0).sums is None
        assert method_of(name, running_sums=True).node(0).sums is not None
        assert method_of(name, setting=lossy).node(0).sums is not None
        assert method_of(name, setting={"loss_rate": 0.1}).warnings() == []
        assert method_of(name, setting=lossy, running_sums=False).node(0).sums is None
    for name, options in (("choco", {}), ("d-psgd", {}), ("sgp", {"running_sums": False})):
        assert "lost for good" in method_of(name, setting=lossy, **options).warnings()[0]


def test_running_sums_carry_exact_values_only() -> None:
    with pytest.raises(ExperimentError, match='values = "bf16": running sums are whole counters'):
        method_of("sparse-push", setting={"lossy": True}, values="bf16")


def test_graphs_of_a_sequence_are_kept_as_long_as_it_takes_to_send_all() -> None:
    graph = build_graph("exponential", 4)
    assert method_of("sgp", graph).graph.hold_steps == 1
    assert method_of("sparse-push", graph).graph.hold_steps == 100
    assert method_of("sparse-push", graph, graph_period=7).graph.hold_steps == 7
    assert method_of("sparse-push", graph, setting={"recorded": True}).graph.hold_steps == 1
    assert method_of("sparse-push").graph.hold_steps == 1


def test_columns_follow_exchanges_and_then_final_rounds() -> None:
    method = method_of("sparse-push", build_graph("exponential", 4), graph_period=2, exchange_every=3)
    assert [method.exchanges(k) for k in range(STEPS + 2)] == [False, False, True] * 2 + [True] * 2
    method = method_of("sparse-push", build_graph("exponential", 4), graph_period=2)
    receivers = [next(j for j in method.column(k, 0) if j) for k in range(STEPS + 3)]
    assert receivers == [1, 1, 2, 2, 1, 1, 1, 2, 1]
    graph = Graph.from_edges("recorded", 4, [[(i, (i + d) % 4) for i in range(4)] for d in (1, 2, 1, 3)])
    method = method_of("sparse-push", graph, setting={"recorded": True})
    assert [next(j for j in method.column(k, 0) if j) for k in range(STEPS + 2)] == [1, 2, 1, 3, 1, 2, 1, 3]


def test_final_rounds() -> None:
    assert method_of("sparse-push").final_rounds() == 0
    assert method_of("scsp", build_graph("ring", 8)).final_rounds() == 88
    assert method_of("scsp", build_graph("ring", 8), setting={"loss_rate": 0.2}).final_rounds() == 110
    exponential = build_graph("exponential", 8)
    assert method_of("scsp", exponential).final_rounds() == 3
    assert method_of("scsp", exponential, setting={"loss_rate": 0.2}).final_rounds() > 25
    assert method_of("scsp", final_rounds=50).final_rounds() == 50
    slow = method_of("scsp", build_graph("ring", 32))
    assert "needs 1432 dense final rounds" in slow.warnings()[0]
    assert isinstance(slow, SCSP)


def test_bytes_as_the_author_counts_them() -> None:
    # 48 + 8 + 8 + 8 + 24 + 3 parameters; of each tensor at least one
    method = method_of("sparse-push", density=0.1)
    assert method.authors_bytes() == 6 * (4 + 1 + 1 + 1 + 2 + 1) + 3
    assert method.authors_bytes(final=True) == method_of("sgp").authors_bytes() == 4 * (99 + 1)


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_rounded_values_are_remembered(values: str) -> None:
    method = method_of("sparse-push", density=0.2, values=values)
    nodes = [method.node(i) for i in range(NODES)]
    total = sum(node.x.double() for node in nodes)
    for step in range(20):
        boxes = {node.number: node.outbox(method.column(step, node.number)) for node in nodes}
        for node in nodes:
            node.absorb([(i, box[node.number]) for i, box in boxes.items() if node.number in box])
    assert torch.allclose(sum(node.x.double() for node in nodes), total, atol=1e-5)
