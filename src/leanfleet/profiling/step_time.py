"""How long a training step takes at given dropout rates: some are timed, the rest is predicted."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from leanfleet.federated.step import Batch, Local
from leanfleet.profiling.memory import check_room, most_bytes, peak_bytes
from leanfleet.profiling.workload import Workload
from leanfleet.randomness import numpy_generator, torch_generator
from leanfleet.subnet import Kept, SubnetPlan

Values = npt.NDArray[np.float64]

_VECTORS, _WARM_UP, _REPEATS = 30, 3, 5
_FOLDS = 5
# Of fewer vectors the folds are too small to say which fit is better.
_FEWEST = 10


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step: t(d) = a + sum over layers of (b m n + c (m + n)), all coefficients >= 0.

    m and n are the kept inputs and outputs of a layer. Rapp et al. 2022 see an offset between time and MACs too; the
    form is our decision.

    Attributes:
        plan: The network.
        coefficients: [1 + 2 layers] a, then b of every layer, then c of every layer.
    """

    plan: SubnetPlan
    coefficients: Values

    @classmethod
    def profile(cls, work: Workload, seconds: float = math.inf, room: float = math.inf) -> Self:
        """Time 30 vectors on this machine, as this process computes, and fit.

        Args:
            work: What a step is.
            seconds: When to stop at the latest; the widest and the narrowest are timed whatever it says.
            room: Bytes of memory that a step may take; what takes more is not timed.

        Raises:
            MemoryError: There is no room for the narrowest.
        """
        plan, vectors = work.plan, _vectors(work.plan)
        if room < math.inf:
            vectors = _fitting(work, vectors, room)
        local, batch, found, begun = work.local(), work.batch(), list[float](), time.monotonic()
        for number, counts in enumerate(vectors):
            if number >= 2 and time.monotonic() - begun > seconds:
                break
            found.append(_time(local, batch, _kept(plan, counts), begun + seconds))
        return cls.fit(plan, vectors[: len(found)], found)

    @classmethod
    def fit(cls, plan: SubnetPlan, counts: Sequence[Sequence[int]], seconds: Sequence[float]) -> Self:
        """Fit what steps took.

        Where these vectors cannot tell the layers apart, a line over the MACs of all layers is better at predicting
        what it has not seen; it is then taken, as the same coefficients: c is 0, and b in proportion to the MACs.

        Args:
            plan: The network.
            counts: [n][groups] kept channels.
            seconds: [n] of a step.
        """
        layers, times = np.stack([_features(plan, _rates(plan, row)) for row in counts]), np.array(seconds)
        tie = np.zeros((layers.shape[1], 2))
        tie[0, 0] = 1.0
        tie[1 : 1 + len(plan.terms), 1] = [term.coefficient for term in plan.terms]
        line = layers @ tie
        if len(times) >= _FEWEST and _held_out(layers, times) < _held_out(line, times):
            return cls(plan, _solve(layers, times))
        return cls(plan, tie @ _solve(line, times))

    def __call__(self, rates: Values) -> Values:
        """Return seconds [n] of vectors [n, groups]."""
        features = np.array([_features(self.plan, vector.tolist()) for vector in rates])
        return features.reshape(len(rates), len(self.coefficients)) @ self.coefficients


def _vectors(plan: SubnetPlan) -> list[list[int]]:
    """Return kept counts [n][groups]: all, half of each group, then random ones of its grid from half on."""
    grids = [[count for count in group.grid if 2 * count >= group.channels] for group in plan.groups]
    rng = numpy_generator("profile")
    drawn = [[int(rng.choice(grid)) for grid in grids] for _ in range(_VECTORS - 2)]
    return [[grid[-1] for grid in grids], [grid[0] for grid in grids], *drawn]


def _fitting(work: Workload, vectors: list[list[int]], room: float) -> list[list[int]]:
    """Return the vectors whose steps have room."""
    if most_bytes(work) <= room:
        return vectors
    peaks = [peak_bytes(work, _kept(work.plan, counts)) for counts in vectors]
    check_room(min(peaks), room)
    return [counts for counts, peak in zip(vectors, peaks, strict=True) if peak <= room]


def _kept(plan: SubnetPlan, counts: Sequence[int]) -> Kept:
    return plan.draw_counts(counts, torch_generator("profile", *counts))


def _rates(plan: SubnetPlan, counts: Sequence[int]) -> list[float]:
    return [1 - count / group.channels for count, group in zip(counts, plan.groups, strict=True)]


def _features(plan: SubnetPlan, rates: Sequence[float]) -> Values:
    inputs, outputs = plan.counts(rates)
    return np.concatenate([[1.0], inputs * outputs, inputs + outputs])


def _solve(features: Values, times: Values) -> Values:
    """Return the non-negative coefficients of the least squared error."""
    from scipy.optimize import nnls

    # Columns of one size: the solver stops at a tolerance.
    size = np.maximum(features.max(axis=0), 1e-12)
    found: Values = nnls(features / size, times)[0] / size
    return found


def _held_out(features: Values, times: Values) -> float:
    """Return the mean squared relative error for vectors that a fit to the others has not seen."""
    folds, predicted = np.arange(len(times)) % _FOLDS, np.zeros(len(times))
    for fold in range(_FOLDS):
        out = folds == fold
        predicted[out] = features[out] @ _solve(features[~out], times[~out])
    return float(np.mean((predicted / times - 1) ** 2))


def _time(local: Local, batch: Batch, kept: Kept, end: float) -> float:
    """Return the median seconds of some steps; of fewer after `end`, but never of a cold one."""
    found = list[float]()
    while len(found) < _WARM_UP + _REPEATS and (len(found) < 2 or time.monotonic() < end):
        begun = time.perf_counter()
        local.descend(kept, batch)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[min(_WARM_UP, len(found) - 1) :])
