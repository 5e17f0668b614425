"""Where short trainings start: a network that has learned something, but far from all."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from leanfleet.search.trials import Bench

_EPOCHS = 20
_LOOKS_PER_EPOCH, _LONGEST = 8, 16
_SEED = -1


def pretrain(
    bench: Bench, accuracy: float, seconds: float, watch: Callable[[int, int, float], None]
) -> tuple[dict[str, Tensor], float]:
    """Train the whole network until it has reached an accuracy on the images held out.

    Args:
        bench: Trains and measures.
        accuracy: Where to stop, a fraction.
        seconds: When to stop at the latest.
        watch: Is told (steps done, steps at most, 0).

    Returns:
        Parameters, and the accuracy they have.
    """
    task = bench.task
    epoch = -(-len(task.data.train) // task.batch_size)
    every, most = max(1, min(_LONGEST, epoch // _LOOKS_PER_EPOCH)), _EPOCHS * epoch
    params, reached, begun = bench.params, bench.measure(bench.params)[0], time.monotonic()
    for step in range(0, most, every):
        if reached >= accuracy or time.monotonic() - begun > seconds:
            break
        params = bench.train(params, bench.plan.uniform(0.0), every, _SEED - step)
        reached = bench.measure(params)[0]
        watch(min(step + every, most), most, 0.0)
    return params, reached
