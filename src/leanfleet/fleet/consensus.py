"""How fast the nodes of a graph agree: the factor a step in the long run, and push-sum as it really goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from leanfleet.errors import ExperimentError
from leanfleet.fleet.graphs import Graph, Values
from leanfleet.randomness import numpy_generator

_COLUMNS = 8
# Rounding, when nothing else is left.
_NOTHING = 1e-12


@lru_cache(maxsize=4)
def second_eigenvalue(graph: Graph) -> float:
    """Return the factor by which disagreement falls with each step in the long run, |lambda_2| from 0 to 1.

    It is the second largest eigenvalue modulus of the product of P over a period, to the power 1 / period; the
    spectral gap is what is missing to 1. Takes a dense matrix: memory n^2, time n^3.
    """
    power, log = _product(graph)
    factors = graph.period
    # An eigenvalue 0 of several vectors would be found as a root of the rounding; powers show that it is none.
    for _ in range(graph.nodes.bit_length()):
        power, log = _scaled(power @ power, 2 * log)
        factors *= 2
    largest = float(np.abs(np.linalg.eigvals(power)).max())
    if largest < _NOTHING:
        return 0.0
    second = math.exp((log + math.log(largest)) / factors)
    return second if second < 1 - _NOTHING else 1.0


def final_rounds(graph: Graph, tolerance: float = 1e-3, loss_rate: float = 0.0) -> int:
    """Return R, the dense rounds after which disagreement has fallen to `tolerance` of what it was.

    R = ceil(ln(tolerance) / ln|lambda_2|), divided by the share of messages that arrive (our decision). Where
    |lambda_2| is 0 values become equal in finitely many rounds, which are counted.

    Args:
        graph: A graph that is connected over its period.
        tolerance: What may be left, a share.
        loss_rate: Share of the messages that are lost.

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
    return math.ceil(rounds / (1 - loss_rate))


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


def _product(graph: Graph) -> tuple[Values, float]:
    """Return the product of P over a period but for its eigenvalue 1, scaled, and the logarithm of the scale."""
    # P leaves sums as they are, so what sums to nothing is a space of its own: without the eigenvalue 1.
    product, log = _scaled(np.eye(graph.nodes) - 1 / graph.nodes, 0.0)
    for step in range(graph.period):
        product = graph.mix(step, product)
        # Over a long period the product itself would underflow, or drown in the rounding of the eigenvalue 1.
        product, log = _scaled(product - product.mean(axis=0), log)
    return product, log


def _scaled(matrix: Values, log: float) -> tuple[Values, float]:
    """Return a matrix of norm 1, or nothing where only rounding was left, and the logarithm of its scale."""
    size = float(np.linalg.norm(matrix))
    return (np.zeros_like(matrix), log) if size < _NOTHING else (matrix / size, log + math.log(size))
