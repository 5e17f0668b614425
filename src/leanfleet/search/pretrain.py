"""Where short trainings start: a network that has learned something, but far from all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from leanfleet.errors import LutError
from leanfleet.search.trials import Bench

_EPOCHS = 20
_LOOKS_PER_EPOCH, _LONGEST = 8, 16
_TOO_FAR = 0.05
_SEED = -1
_TEN = 0.1


class Start(NamedTuple):
    """Where short trainings start.

    Attributes:
        params: Parameters.
        accuracy: What they have on the images held out.
        seconds_per_step: What a step took; 0 if there was none.
    """

    params: dict[str, Tensor]
    accuracy: float
    seconds_per_step: float


def start_goal(accuracy: float, classes: int) -> float:
    """Return where pre-training stops: as far between guessing and all right as `accuracy` is with ten classes."""
    guessing = 1 / classes
    return guessing + (accuracy - _TEN) / (1 - _TEN) * (1 - guessing)


def pretrain(bench: Bench, goal: float, seconds: float, watch: Callable[[float], None]) -> Start:
    """Train the whole network until it has reached an accuracy on the images held out, and not much more.

    It ends after 20 epochs at the latest.

    Args:
        bench: Trains and measures.
        goal: Where to stop, a fraction. Small networks learn fast: where that is passed by more than five points
            between two looks, the last steps are taken again, fewer of them.
        seconds: When to stop at the latest.
        watch: Is told what share is done, in accuracy or in time, whichever is more.

    Raises:
        LutError: Training diverges.
    """
    task = bench.task
    epoch = -(-len(task.data.train) // task.batch_size)
    every, most = max(1, min(_LONGEST, epoch // _LOOKS_PER_EPOCH)), _EPOCHS * epoch
    params, before, begun = bench.params, bench.measure(bench.params)[0], time.monotonic()
    reached, step, trained, done = before, 0, 0, 0.0
    while reached < goal and step < most and time.monotonic() - begun < seconds:
        tried = bench.train(params, bench.plan.uniform(0.0), every, _SEED - step)
        if not all(p.isfinite().all() for p in tried.values()):
            raise LutError(
                f"{task.network}: training diverges at a learning rate of {task.optimiser.lr:g}; give a lower --lr"
            )
        accuracy = bench.measure(tried)[0]
        trained += every
        if accuracy > goal + _TOO_FAR and every > 1:
            every //= 2
            continue
        params, reached, step = tried, accuracy, step + every
        gained = (reached - before) / (goal - before)
        done = min(1.0, max(done, gained, step / most, (time.monotonic() - begun) / seconds))
        watch(done)
    return Start(params, reached, (time.monotonic() - begun) / trained if trained else 0.0)
