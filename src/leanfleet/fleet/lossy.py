"""Dense push-sum over links that lose messages, with running sums: how long it takes to agree."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from leanfleet.fleet.graphs import Graph, Values
from leanfleet.randomness import numpy_generator

LIMIT_STEPS: Final = 10_000
_FLEETS, _COLUMNS = 20, 4
_ENOUGH = 0.9

_Indices = npt.NDArray[np.int64]


class _Phase(NamedTuple):
    """The links of a phase, numbered over all phases, and what every node keeps of its values."""

    links: _Indices
    senders: _Indices
    receivers: _Indices
    shares: Values


def lossy_rounds(
    graph: Graph, tolerance: float, loss_rate: float, seed: int = 0, limit_steps: int = LIMIT_STEPS
) -> int:
    """Return after how many rounds nine of ten fleets agree, if every message may be lost (our decision).

    Simulated: fleets of normally distributed values, each with losses of its own. What is lost comes with the next
    message over the same link.

    Args:
        graph: A graph that is connected over its period.
        tolerance: At which share of its first disagreement a fleet agrees.
        loss_rate: Share of the messages that are lost.
        seed: Of values and losses.
        limit_steps: When to give up; then this is what is returned.
    """
    rng = numpy_generator(seed, "losses")
    start = rng.standard_normal((graph.nodes, _FLEETS, _COLUMNS))
    mean = start.mean(axis=0)
    target = tolerance * np.linalg.norm(start - mean, axis=(0, 2))
    state = np.concatenate([start, np.ones((graph.nodes, _FLEETS, 1))], axis=-1)
    phases = _phases(graph)
    on_the_way = np.zeros((1 + max(int(phase.links.max(initial=-1)) for phase in phases), *state.shape[1:]))
    for step in range(limit_steps):
        links, senders, receivers, shares = phases[graph.phase(step)]
        state *= shares[:, None, None]
        # A node keeps as much as it gives to each of its receivers.
        on_the_way[links] += state[senders]
        came = on_the_way[links] * (rng.random((len(links), _FLEETS, 1)) >= loss_rate)
        on_the_way[links] -= came
        np.add.at(state, receivers, came)
        left = np.linalg.norm(state[..., :-1] / state[..., -1:] - mean, axis=(0, 2))
        if np.mean(left <= target) >= _ENOUGH:
            return step + 1
    return limit_steps


def _phases(graph: Graph) -> list[_Phase]:
    numbers: dict[tuple[int, int], int] = {}
    found = []
    for phase in graph.phases:
        edges = [(sender, receiver) for sender, out in enumerate(phase) for receiver in out]
        links = np.array([numbers.setdefault(edge, len(numbers)) for edge in edges], dtype=np.int64)
        senders, receivers = np.array(edges, dtype=np.int64).reshape(-1, 2).T
        shares = 1 / (np.array([len(out) for out in phase]) + 1)
        found.append(_Phase(links, senders, receivers, shares))
    return found
