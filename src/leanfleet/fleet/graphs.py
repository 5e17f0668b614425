"""Who sends to whom, and how much: directed graphs that may change from step to step.

Mixing is that of push-sum (Assran et al. 2019; Aketi et al. 2021): `P[i, j]` is the weight of what sender j gives
to receiver i. Columns sum to 1, so nothing is lost on the way; rows need not, so every sender can choose its weights
without asking anybody. They are uniform: a node keeps as much as it gives to each of its out-neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from leanfleet.errors import ExperimentError

Values = npt.NDArray[np.float64]
# Of every node of one phase, rising.
Neighbours = tuple[tuple[int, ...], ...]

_NAMED = 8
# From this share of all possible links on a matrix product is the faster way.
_DENSE = 1 / 8


class _Route(NamedTuple):
    """Senders in order of receivers, where each receiver's begin, and the share of every node."""

    senders: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    shares: Values


@dataclass(frozen=True)
class Graph:
    """Links between nodes 0 to n - 1, which go through `phases` again and again; every node also keeps a share.

    Attributes:
        name: What messages call it.
        nodes: How many there are, n.
        phases: Out-neighbours: those of node j in phase k are `phases[k][j]`, rising and without j itself.
        hold_steps: For how many steps in a row a phase is kept.

    Raises:
        ExperimentError: There are fewer than two nodes, no phases, or links that cannot be.
    """

    name: str
    nodes: int
    phases: tuple[Neighbours, ...]
    hold_steps: int = 1

    def __post_init__(self) -> None:
        if self.nodes < 2:
            raise ExperimentError(f"graph '{self.name}' needs at least 2 nodes, not {self.nodes}")
        if not self.phases or self.hold_steps < 1:
            raise ExperimentError(f"graph '{self.name}' needs at least one phase, held for at least one step")
        for number, phase in enumerate(self.phases):
            if fault := _fault(phase, self.nodes):
                raise ExperimentError(f"graph '{self.name}', phase {number}: {fault}")

    @classmethod
    def from_edges(cls, name: str, nodes: int, phases: Iterable[Iterable[tuple[int, int]]]) -> Graph:
        """Return a graph with the links (from, to) of each phase, in any order; a link named twice is one.

        Raises:
            ExperimentError: As for the class.
        """
        return cls(name, nodes, tuple(_neighbours(name, nodes, edges) for edges in phases))

    def held(self, steps: int) -> Graph:
        """Return the same graph, but each phase kept for `steps` steps in a row."""
        return replace(self, hold_steps=steps)

    @property
    def period(self) -> int:
        """After how many steps the graph repeats itself."""
        return len(self.phases) * self.hold_steps

    def phase(self, step: int) -> int:
        """Return the number of the phase at a step, both from 0."""
        return step // self.hold_steps % len(self.phases)

    def out_neighbours(self, step: int, node: int) -> tuple[int, ...]:
        """Return to whom a node sends at a step, rising, without itself."""
        return self.phases[self.phase(step)][node]

    def in_neighbours(self, step: int, node: int) -> tuple[int, ...]:
        """Return who sends to a node at a step, rising, without itself."""
        return self._incoming[self.phase(step)][node]

    def column(self, step: int, node: int) -> dict[int, float]:
        """Return the weights p_ij of sender j = `node`: of its own share and of every receiver; they sum to 1."""
        out = self.out_neighbours(step, node)
        return dict.fromkeys((node, *out), 1 / (len(out) + 1))

    def weights(self, step: int) -> Values:
        """Return all of P at a step, [n, n], receivers in rows and senders in columns: for small fleets."""
        matrix = np.zeros((self.nodes, self.nodes))
        for sender in range(self.nodes):
            column = self.column(step, sender)
            matrix[list(column), sender] = list(column.values())
        return matrix

    def mix(self, step: int, values: Values) -> Values:
        """Return P applied to a row a node, [n, ...]; the cost is linear in the number of links."""
        route = self._routes[self.phase(step)]
        if isinstance(route, np.ndarray):
            return np.tensordot(route, values, axes=1)
        given = values * route.shares.reshape(-1, *(1,) * (values.ndim - 1))
        # Every receiver has its own share at least, so no segment is empty.
        return np.add.reduceat(given[route.senders], route.starts, axis=0)

    @cached_property
    def doubly_stochastic(self) -> bool:
        """Whether rows of P sum to 1 as well, at every step: push-sum weights then stay 1 without losses."""
        ones = np.ones(self.nodes)
        return all(np.allclose(self.mix(k * self.hold_steps, ones), 1) for k in range(len(self.phases)))

    @cached_property
    def _incoming(self) -> tuple[Neighbours, ...]:
        return tuple(_turned(phase) for phase in self.phases)

    @cached_property
    def _routes(self) -> tuple[_Route | Values, ...]:
        """How to mix in each phase: the links if they are few, else the matrix."""
        few = _DENSE * self.nodes**2
        return tuple(
            self.weights(number * self.hold_steps)
            if sum(map(len, phase)) + self.nodes > few
            else _route(phase, self._incoming[number])
            for number, phase in enumerate(self.phases)
        )


def sequence(name: str, graphs: Sequence[Graph]) -> Graph:
    """Return the phases of several graphs of equally many nodes, one graph after the other, as one period.

    Raises:
        ExperimentError: They differ in nodes, or there are none.
    """
    sizes = sorted({graph.nodes for graph in graphs})
    if len(sizes) != 1:
        raise ExperimentError(f"graph '{name}': needs graphs of equally many nodes, not of {sizes}")
    return Graph(
        name, sizes[0], tuple(p for graph in graphs for p in graph.phases for _ in range(graph.hold_steps))
    )


def shortest_window(graph: Graph) -> int:
    """Return for how many steps, whenever one begins, links must add up to be strongly connected.

    Raises:
        ExperimentError: They never are; says who cannot be reached, and from whom.
    """
    check_connected(graph)
    return (max(_spans(graph)) - 1) * graph.hold_steps + 1


def check_connected(graph: Graph, window_steps: int | None = None) -> None:
    """Check that the links of any `window_steps` steps in a row, taken together, are strongly connected.

    Push-sum converges if there is such a window (Assran et al. 2019).

    Args:
        graph: What to check.
        window_steps: Length of the window; None for the period.

    Raises:
        ExperimentError: They are not; says who cannot be reached, and from whom.
    """
    window = graph.period if window_steps is None else window_steps
    if window < 1:
        raise ExperimentError(f"graph '{graph.name}': a window has at least 1 step, not {window}")
    whole = _unreached(graph, range(graph.period))
    if whole is not None:
        raise ExperimentError(
            f"graph '{graph.name}', {graph.nodes} nodes: {whole}, at whatever step; add links that lead there"
        )
    if window >= graph.period:
        return
    spans = _spans(graph)
    needed = (max(spans) - 1) * graph.hold_steps + 1
    if window < needed:
        start = spans.index(max(spans)) * graph.hold_steps
        raise ExperimentError(
            f"graph '{graph.name}', {graph.nodes} nodes: {_unreached(graph, range(start, start + window))}, in a "
            f"window of {_count(window, 'step')} from step {start}; take a window of at least {needed}"
        )


def listed(nodes: Iterable[int]) -> str:
    """Return the numbers of some nodes in a few words."""
    every = list(nodes)
    more = [f"{len(every) - _NAMED} more"] if len(every) > _NAMED else []
    *first, last = [*map(str, every[:_NAMED]), *more]
    return f"{', '.join(first)} and {last}" if first else last


def _neighbours(name: str, nodes: int, edges: Iterable[tuple[int, int]]) -> Neighbours:
    out: list[set[int]] = [set() for _ in range(nodes)]
    for sender, receiver in edges:
        if not 0 <= sender < nodes:
            raise ExperimentError(f"graph '{name}': no node {sender} to send; nodes are 0 to {nodes - 1}")
        out[sender].add(receiver)
    return tuple(tuple(sorted(receivers)) for receivers in out)


def _fault(phase: Neighbours, nodes: int) -> str | None:
    if len(phase) != nodes:
        return f"has out-neighbours of {len(phase)} nodes, not of {nodes}"
    for sender, receivers in enumerate(phase):
        if sender in receivers:
            return f"node {sender} sends to itself; what it keeps is no link, leave it out"
        if list(receivers) != sorted(set(receivers)):
            return f"the out-neighbours of node {sender} are not rising"
        if receivers and not 0 <= receivers[0] <= receivers[-1] < nodes:
            return f"node {sender} sends to {listed(receivers)}; nodes are 0 to {nodes - 1}"
    return None


def _turned(phase: Neighbours) -> Neighbours:
    incoming: list[list[int]] = [[] for _ in phase]
    for sender, receivers in enumerate(phase):
        for receiver in receivers:
            incoming[receiver].append(sender)
    return tuple(map(tuple, incoming))


def _route(outgoing: Neighbours, incoming: Neighbours) -> _Route:
    senders = [sender for node, others in enumerate(incoming) for sender in (node, *others)]
    ends = np.cumsum([len(others) + 1 for others in incoming])
    shares = 1 / (np.array([len(receivers) for receivers in outgoing], dtype=np.float64) + 1)
    return _Route(np.array(senders, dtype=np.int64), np.concatenate([[0], ends[:-1]]), shares)


def _edges(phase: Neighbours) -> Iterable[tuple[int, int]]:
    return ((sender, receiver) for sender, receivers in enumerate(phase) for receiver in receivers)


def _empty(nodes: int) -> Any:
    import networkx as nx

    union = nx.DiGraph()
    union.add_nodes_from(range(nodes))
    return union


def _spans(graph: Graph) -> list[int]:
    """Return how many phases it takes from each one on until links add up; they must do so in a period."""
    import networkx as nx

    if len(graph.phases) == 1:
        return [1]
    union, held, spans, end = _empty(graph.nodes), Counter[tuple[int, int]](), [], 0
    for start, phase in enumerate(graph.phases):
        while not nx.is_strongly_connected(union):
            following = graph.phases[end % len(graph.phases)]
            held.update(_edges(following))
            union.add_edges_from(_edges(following))
            end += 1
        spans.append(end - start)
        held.subtract(_edges(phase))
        union.remove_edges_from([edge for edge in _edges(phase) if not held[edge]])
    return spans


def _unreached(graph: Graph, steps: range) -> str | None:
    """Say which nodes cannot be reached from which others by the links of all these steps, if there are such."""
    import networkx as nx

    union = _empty(graph.nodes)
    for phase in {graph.phase(step) for step in steps}:
        union.add_edges_from(_edges(graph.phases[phase]))
    groups = nx.condensation(union)
    if len(groups) == 1:
        return None
    closed = min((groups.nodes[g]["members"] for g in groups if not groups.out_degree(g)), key=len)
    others = [node for node in range(graph.nodes) if node not in closed]
    return f"{_noun(others)} cannot be reached from {_noun(sorted(closed))}"


def _noun(nodes: Sequence[int]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {listed(nodes)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
