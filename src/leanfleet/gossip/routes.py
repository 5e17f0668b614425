"""What methods ask of a graph: whether links go both ways, and what is left when nodes have left for good."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from leanfleet.errors import ExperimentError
from leanfleet.fleet import Graph, check_connected


def one_way_link(graph: Graph, at_once: bool = False) -> tuple[int, int] | None:
    """Return a link (from, to) that has no way back at any step, or at once: in the same step; or None."""
    sets = [set(_links([phase])) for phase in graph.phases] if at_once else [set(_links(graph.phases))]
    return min((link for links in sets for link in links if link[::-1] not in links), default=None)


def neighbours(graph: Graph, node: int) -> tuple[list[int], list[int]]:
    """Return who sends to a node at any step, and to whom it sends, rising."""
    links = set(_links(graph.phases))
    return sorted(a for a, b in links if b == node), sorted(b for a, b in links if a == node)


def without(graph: Graph, gone: Collection[int]) -> Graph:
    """Return the links between the nodes that are left, which are numbered anew.

    Raises:
        ExperimentError: They do not hold together any more, or are fewer than two.
    """
    if not gone:
        return graph
    numbers = {node: k for k, node in enumerate(n for n in range(graph.nodes) if n not in gone)}
    edges = [
        [
            (numbers[a], numbers[b])
            for a, out in enumerate(phase)
            for b in out
            if a in numbers and b in numbers
        ]
        for phase in graph.phases
    ]
    names = ", ".join(map(str, sorted(gone)))
    rest = Graph.from_edges(f"{graph.name} without {names}", len(numbers), edges).held(graph.hold_steps)
    try:
        check_connected(rest)
    except ExperimentError:
        raise ExperimentError(
            f"[fleet] absences: graph '{graph.name}' falls apart when {names} left for good; take one with more "
            "links, such as undirected-ring or exponential"
        ) from None
    return rest


def _links(phases: Iterable[Sequence[Sequence[int]]]) -> Iterator[tuple[int, int]]:
    return ((a, b) for phase in phases for a, receivers in enumerate(phase) for b in receivers)
