"""How fast the nodes of a graph agree: the factor a step in the long run, and push-sum as it really goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from leanfleet.errors import ExperimentError
from leanfleet.fleet.graphs import Graph, Neighbours, Values
from leanfleet.fleet.lossy import lossy_rounds
from leanfleet.randomness import numpy_generator

_COLUMNS = 8
# Rounding, when nothing else is left.
_NOTHING = 1e-12
# Of more nodes, all eigenvalues take longer than the largest alone; of many more, minutes.
_FEW_NODES, _MANY_NODES = 300, 2_000
# Over so many rounds losses even out.
_MANY_ROUNDS = 1000
# On a directed ring that many more rounds for the share of late messages are enough: 3.4 times as many if all are late.
_LATE = 2.5


@lru_cache(maxsize=4)
def second_eigenvalue(graph: Graph) -> float:
    """Return the factor by which disagreement falls with each step in the long run, |lambda_2| from 0 to 1.

    It is the second largest eigenvalue modulus of the product of P over a period, to the power 1 / period; the
    spectral gap is what is missing to 1. Where all nodes send equally far on, it has a closed form. Of other large
    graphs the largest eigenvalue alone is looked for, with scipy if it is installed; else a dense matrix it is:
    memory n^2, time n^3.

    Raises:
        ExperimentError: There are so many nodes that scipy is needed.
    """
    offsets = [_offsets(phase) for phase in graph.phases]
    if None not in offsets:
        second = _of_circulants(graph, [there for there in offsets if there is not None])
    else:
        found = _by_arnoldi(graph) if graph.nodes > _FEW_NODES else None
        if found is None and graph.nodes > _MANY_NODES:
            raise ExperimentError(
                f"graph '{graph.name}', {graph.nodes:,} nodes: its eigenvalues need scipy; pip install scipy"
            )
        second = _by_the_matrix(graph) if found is None else found
    return second if second < 1 - _NOTHING else 1.0


@lru_cache(maxsize=4)
def final_rounds(
    graph: Graph, tolerance: float = 1e-3, loss_rate: float = 0.0, late_rate: float = 0.0
) -> int:
    """Return R, the dense rounds after which disagreement has fallen to `tolerance` of what it was.

    R = ceil(ln(tolerance) / ln|lambda_2|), divided by the share of messages that arrive (our decision). Where
    |lambda_2| is 0 values become equal in finitely many rounds, which are counted. Graphs that change agree far
    later than that when messages are lost, since a link makes good what it lost only when it is there again: so R
    is no less than what nine of ten simulated fleets need. Likewise where messages are late.

    Args:
        graph: A graph that is connected over its period.
        tolerance: What may be left, a share.
        loss_rate: Share of the messages that are lost.
        late_rate: Share of the messages that arrive a round later.

    Raises:
        ExperimentError: |lambda_2| is 1: no number of rounds is enough.
    """
    second = second_eigenvalue(graph)
    if second == 1:
        raise ExperimentError(
            f"graph '{graph.name}', {graph.nodes} nodes: no number of rounds makes nodes agree (|lambda_2| is 1); "
            "take another graph"
        )
    # Each period leaves values one dimension less to differ in.
    limit = graph.period * graph.nodes
    counted = 0 if second else consensus(graph, tolerance, limit_steps=limit).steps or limit
    rounds = math.log(tolerance) / math.log(second) if second else counted
    found = math.ceil(rounds / (1 - loss_rate))
    if not loss_rate + late_rate:
        return found
    if found > _MANY_ROUNDS:
        return math.ceil(found * (1 + _LATE * late_rate))
    return max(found, lossy_rounds(graph, tolerance, loss_rate, late_rate))


@dataclass(frozen=True)
class Consensus:
    """What push-sum did on a graph.

    Attributes:
        steps: After how many steps disagreement had fallen as far as asked; None if the limit came first.
        weight_low: Least push-sum weight of any node at any step: such a node learns faster, by 1 / w.
        weight_high: Greatest.
    """

    steps: int | None
    weight_low: float
    weight_high: float


def consensus(graph: Graph, tolerance: float = 1e-3, seed: int = 0, limit_steps: int = 10_000) -> Consensus:
    """Run push-sum on normally distributed values, dense and without losses, and measure how it converges.

    Disagreement is the root of the squared distances of all z_i = x_i / w_i from the mean of x at the start.

    Args:
        graph: Where to run it.
        tolerance: At which share of the first disagreement to stop.
        seed: Of the values.
        limit_steps: When to give up.
    """
    start = numpy_generator(seed, "consensus").standard_normal((graph.nodes, _COLUMNS))
    mean = start.mean(axis=0)
    target = tolerance * float(np.linalg.norm(start - mean))
    state = np.column_stack([start, np.ones(graph.nodes)])
    low = high = 1.0
    for step in range(limit_steps):
        state = graph.mix(step, state)
        weight = state[:, -1:]
        low, high = min(low, float(weight.min())), max(high, float(weight.max()))
        if np.linalg.norm(state[:, :-1] / weight - mean) <= target:
            return Consensus(step + 1, low, high)
    return Consensus(None, low, high)


def _offsets(phase: Neighbours) -> tuple[int, ...] | None:
    """Return how far on every node sends, if all send equally far: P is circulant then."""
    nodes, first = len(phase), phase[0]
    equal = all(out == tuple(sorted((d + j) % nodes for d in first)) for j, out in enumerate(phase))
    return first if equal else None


def _of_circulants(graph: Graph, offsets: list[tuple[int, ...]]) -> float:
    """The eigenvalues of circulant matrices, and of their products, are Fourier transforms of their first columns."""
    logs = np.zeros(graph.nodes - 1)
    for there in offsets:
        column = np.zeros(graph.nodes)
        column[[0, *there]] = 1 / (len(there) + 1)
        moduli = np.abs(np.fft.fft(column))[1:]
        with np.errstate(divide="ignore"):
            logs += np.log(np.where(moduli < _NOTHING, 0.0, moduli)) / len(offsets)
    return math.exp(logs.max())


def _by_arnoldi(graph: Graph) -> float | None:
    """Return the factor for a graph of many nodes; None if scipy is not there, or does not find it."""
    try:
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigs
    except ImportError:
        return None
    start = numpy_generator(0, "arnoldi").standard_normal(graph.nodes)
    vector, scale = _over_a_period(graph, start)
    if not vector.any():
        return 0.0

    def apply(vector: Values) -> Values:
        found, log = _over_a_period(graph, vector.reshape(-1))
        return found * math.exp(log - scale)

    operator = LinearOperator((graph.nodes, graph.nodes), apply, dtype=np.float64)
    try:
        (value,) = eigs(operator, k=1, v0=start, tol=1e-9, return_eigenvectors=False)
    except ArpackError:
        return None
    return math.exp((math.log(abs(value)) + scale) / graph.period)


def _by_the_matrix(graph: Graph) -> float:
    power, log = _over_a_period(graph, np.eye(graph.nodes))
    factors = graph.period
    # An eigenvalue 0 of several vectors would be found as a root of the rounding; powers show that it is none.
    for _ in range(graph.nodes.bit_length()):
        power, log = _scaled(power @ power, 2 * log)
        factors *= 2
    largest = float(np.abs(np.linalg.eigvals(power)).max())
    return 0.0 if largest < _NOTHING else math.exp((log + math.log(largest)) / factors)


def _over_a_period(graph: Graph, values: Values) -> tuple[Values, float]:
    """Return P over a period applied to values but for their mean, scaled, and the logarithm of the scale."""
    # P leaves sums as they are, so what sums to nothing is a space of its own: without the eigenvalue 1.
    found, log = _scaled(values - values.mean(axis=0), 0.0)
    for step in range(graph.period):
        found = graph.mix(step, found)
        # Over a long period the product itself would underflow, or drown in the rounding of the eigenvalue 1.
        found, log = _scaled(found - found.mean(axis=0), log)
    return found, log


def _scaled(values: Values, log: float) -> tuple[Values, float]:
    """Return values of norm 1, or nothing where only rounding was left, and the logarithm of their scale."""
    size = float(np.linalg.norm(values))
    return (np.zeros_like(values), log) if size < _NOTHING else (values / size, log + math.log(size))
