"""How much every layer matters to the network that short trainings start from; nothing is trained for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from leanfleet.randomness import torch_generator
from leanfleet.search.strategies import HIGHEST
from leanfleet.search.trials import Bench, Values, nested

_MASKS = 2


def sensitivities(bench: Bench, params: Mapping[str, Tensor]) -> Values:
    """Return [groups] by how much the loss on held-out images rises when half of one layer alone is dropped, >= 0.

    What Fisher information and shares of zeros estimate (the specification's 6.3) is measured directly: a look at the
    held-out images a layer and mask costs less than a short training (our decision).

    Args:
        bench: Measures.
        params: The network.
    """
    plan, before = bench.plan, bench.measure(params)[1]
    rises = np.zeros((len(plan.groups), _MASKS))
    for place in range(len(plan.groups)):
        rates = [0.0] * len(plan.groups)
        rates[place] = HIGHEST
        for luck in range(_MASKS):
            kept = nested(plan, rates, torch_generator(bench.task.seed, luck, "sensitivity"))
            rises[place, luck] = bench.measure(params, kept)[1] - before
    found: Values = np.maximum(rises.mean(axis=1), 0.0)
    return found
