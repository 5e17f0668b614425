"""What a dropout vector costs: MACs, or the time of a step as profiled on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from leanfleet.federated.step import Local, Step
from leanfleet.randomness import numpy_generator, torch_generator
from leanfleet.search.trials import Task, Values
from leanfleet.subnet import SubnetPlan

_VECTORS, _WARM_UP, _REPEATS = 30, 3, 5
_FEWEST_VECTORS = 6


def macs(plan: SubnetPlan) -> Callable[[Values], Values]:
    """Return the cost function of expected forward MACs per sample."""
    return plan.macs_of_vectors


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
    def profile(cls, task: Task, seed: int = 0, seconds: float = math.inf) -> Self:
        """Time random vectors on this machine, in one thread, and fit.

        Args:
            task: What a step is.
            seed: Decides the vectors.
            seconds: When to stop at the latest; some vectors are timed whatever it says.
        """
        from scipy.optimize import nnls

        plan, params = task.plan()
        drawn = numpy_generator(seed, "profile").uniform(0, 0.5, (_VECTORS - 2, len(plan.groups)))
        rates = np.concatenate([np.zeros((1, drawn.shape[1])), np.full((1, drawn.shape[1]), 0.5), drawn])
        found, begun = list[float](), time.monotonic()
        for number, vector in enumerate(rates):
            if number >= _FEWEST_VECTORS and time.monotonic() - begun > seconds:
                break
            found.append(_time(plan, params, task, vector))
        features = np.stack([_features(plan, vector) for vector in rates[: len(found)]])
        # Columns of one size: the solver stops at a tolerance.
        size = np.maximum(features.max(axis=0), 1e-12)
        fitted, _ = nnls(features / size, np.array(found))
        return cls(plan, fitted / size)

    def __call__(self, rates: Values) -> Values:
        """Return seconds [n] of vectors [n, groups]."""
        features = np.array([_features(self.plan, vector) for vector in rates])
        return features.reshape(len(rates), len(self.coefficients)) @ self.coefficients


def _features(plan: SubnetPlan, rates: Values) -> Values:
    inputs, outputs = plan.counts(rates.tolist())
    return np.concatenate([[1.0], inputs * outputs, inputs + outputs])


def _time(plan: SubnetPlan, params: dict[str, torch.Tensor], task: Task, rates: Values) -> float:
    data = task.data
    x = torch.randn(task.batch_size, *data.shape, generator=torch_generator("profile"))
    batch = x.contiguous(memory_format=torch.channels_last), torch.arange(task.batch_size) % len(data.classes)
    local = Local(Step(plan, task.optimiser, 1e-6, scale=True), params)
    found = []
    for number in range(_WARM_UP + _REPEATS):
        kept = plan.draw(rates.tolist(), torch_generator(number))
        begun = time.perf_counter()
        local.descend(kept, batch)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[_WARM_UP:])
