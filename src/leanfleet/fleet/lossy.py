"""Dense push-sum over links that lose or delay messages, with running sums: how long it takes to agree."""

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
    graph: Graph,
    tolerance: float,
    loss_rate: float,
    late_rate: float = 0.0,
    seed: int = 0,
    limit_steps: int = LIMIT_STEPS,
) -> int:
    """Return after how many rounds nine of ten fleets agree, if messages may be lost or late (our decision).

    Simulated: fleets of normally distributed values, each with luck of its own. What is lost comes with the next
    message over the same link, what is late a round later.

    Args:
        graph: A graph that is connected over its period.
        tolerance: At which share of its first disagreement a fleet agrees.
        loss_rate: Share of the messages that are lost.
        late_rate: Share of the messages that arrive a round later.
        seed: Of values and luck.
        limit_steps: When to give up; then this is what is returned.
    """
    rng = numpy_generator(seed, "losses")
    start = rng.standard_normal((graph.nodes, _FLEETS, _COLUMNS))
    mean = start.mean(axis=0)
    target = tolerance * np.linalg.norm(start - mean, axis=(0, 2))
    state = np.concatenate([start, np.ones((graph.nodes, _FLEETS, 1))], axis=-1)
    phases = _phases(graph)
    links = 1 + max(int(phase.links.max(initial=-1)) for phase in phases)
    outstanding = np.zeros((links, *state.shape[1:]))
    # What is late, and at whose node.
    late, late_at = np.zeros((0, *state.shape[1:])), np.zeros(0, dtype=np.int64)
    for step in range(limit_steps):
        edges, senders, receivers, shares = phases[graph.phase(step)]
        state *= shares[:, None, None]
        # A node keeps as much as it gives to each of its receivers.
        outstanding[edges] += state[senders]
        luck = rng.random((len(edges), _FLEETS, 1))
        arrives = outstanding[edges] * (luck >= loss_rate)
        outstanding[edges] -= arrives
        in_time = arrives * (luck >= loss_rate + late_rate)
        np.add.at(state, late_at, late)
        np.add.at(state, receivers, in_time)
        late, late_at = arrives - in_time, receivers
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
