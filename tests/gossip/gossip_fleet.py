"""Small fleets of gossip nodes that mix vectors, and links that lose what they carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from leanfleet.fleet import Graph, build_graph
from leanfleet.gossip.descent import Sgd, Training
from leanfleet.gossip.layout import Layout
from leanfleet.gossip.node import Node
from leanfleet.gossip.rules import Rule
from leanfleet.gossip.sums import Repair, RunningSums
from leanfleet.randomness import numpy_generator
from leanfleet.wire import Compressor, Identity, Message, Qsgd, RandomK, Sign, TopK

PLAIN_SGD = Sgd(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
Lost = Callable[[int, int, int], bool]
"""(step, sender, receiver) -> whether the message between them is lost."""


COMPRESSORS: dict[str, Compressor] = {
    "identity": Identity(),
    "top-k": TopK(0.2),
    "top-k-bf16": TopK(0.2, "bf16"),
    "random-k": RandomK(0.2),
    "qsgd": Qsgd(3, biased=True),
    "sign": Sign(),
}


PAIR = build_graph("complete", 2)
BOTH_WAYS = build_graph("undirected-ring", 4)


class Vector(nn.Module):
    """A network that says its parameters, whatever it is shown."""

    def __init__(self, start: Tensor, cuts: Sequence[int] = ()) -> None:
        super().__init__()
        pieces = torch.tensor_split(start.clone(), list(cuts))
        self.parts = nn.ParameterList([nn.Parameter(piece) for piece in pieces])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(self.parts))


def distance(said: Tensor, wanted: Tensor) -> Tensor:
    """Half the squared distance: its gradient is what is missing."""
    return 0.5 * (said - wanted).square().sum()


def training_of(start: Tensor, sgd: Sgd = PLAIN_SGD, cuts: Sequence[int] = ()) -> Training:
    return Training(Vector(start, cuts), distance, sgd)


def fleet_of(
    starts: Tensor,
    rule: Callable[[Layout], Rule],
    *,
    cuts: Sequence[int] = (),
    sgd: Sgd = PLAIN_SGD,
    sums: Callable[[Layout], RunningSums] | None = None,
    weighted: bool = True,
    quasi_global: bool = False,
    combine_first: bool = False,
) -> list[Node]:
    """Nodes that begin with the rows of `starts` [n, d]."""
    nodes = []
    for number, start in enumerate(starts):
        training = training_of(start, sgd, cuts)
        node = Node(
            number,
            training,
            rule(training.layout),
            weighted=weighted,
            sums=None if sums is None else sums(training.layout),
            quasi_global=quasi_global,
            combine_first=combine_first,
        )
        nodes.append(node)
    return nodes


def columns(graph: Graph, step: int) -> dict[int, dict[int, float]]:
    return {node: graph.column(step, node) for node in range(graph.nodes)}


def exchange(
    nodes: Sequence[Node],
    weights: Mapping[int, Mapping[int, float]],
    step: int = 0,
    lost: Lost = lambda step, sender, receiver: False,
) -> None:
    """Let nodes send and absorb once."""
    by_number = {node.number: node for node in nodes}
    boxes = {node.number: box_of(node, weights[node.number]) for node in nodes}
    for node in nodes:
        arrived = [
            (sender, box[node.number])
            for sender, box in boxes.items()
            if node.number in box and not lost(step, sender, node.number)
        ]
        by_number[node.number].absorb(arrived)


def box_of(node: Node, column: Mapping[int, float]) -> dict[int, Message]:
    """All that a node sends."""
    return {**node.outbox(column), **node.signs(column)}


def run(
    nodes: Sequence[Node],
    graph: Graph,
    steps: int,
    lost: Lost = lambda step, sender, receiver: False,
    first: int = 0,
) -> None:
    for step in range(first, first + steps):
        exchange(nodes, columns(graph, step), step, lost)


def xs(nodes: Sequence[Node]) -> Tensor:
    return torch.stack([node.x for node in nodes])


def zs(nodes: Sequence[Node]) -> Tensor:
    return torch.stack([node.z() for node in nodes])


def ws(nodes: Sequence[Node]) -> list[float]:
    return [node.weight for node in nodes]


def disagreement(nodes: Sequence[Node]) -> float:
    """Root of the squared distances of all z from their mean."""
    z = zs(nodes)
    return float((z - z.mean(0)).norm())


def outstanding(nodes: Sequence[Node]) -> tuple[Tensor, float]:
    """What is on its way on all links."""
    vector, weight = torch.zeros_like(nodes[0].x), 0.0
    for sender in nodes:
        for receiver in nodes:
            if sender.sums and receiver.sums and receiver.number in sender.sums.out:
                more, heavier = sender.sums.outstanding(receiver.number, receiver.sums, sender.number)
                vector, weight = vector + more, weight + heavier
    return vector, weight


def normal(nodes: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(nodes, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def weights(draw: st.DrawFn, nodes: int) -> dict[int, dict[int, float]]:
    """Any column-stochastic P, of any links."""
    found = {}
    for sender in range(nodes):
        shares = draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=nodes, max_size=nodes))
        shares[sender] += 0.25
        found[sender] = {j: share / sum(shares) for j, share in enumerate(shares) if share}
    return found


def sums_with(repair: Repair = "none", lease: int | None = None) -> Callable[[Layout], RunningSums]:
    return lambda layout: RunningSums(layout, repair, lease)


def lossy(rate: float, seed: int = 0) -> Callable[[int, int, int], bool]:
    return lambda step, sender, receiver: (
        numpy_generator(seed, step, sender, receiver, "loss").random() < rate
    )
