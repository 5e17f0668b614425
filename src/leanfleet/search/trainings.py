"""The short trainings of one search: with which seeds, what they come to, how long they take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from leanfleet.search.budget import Budget
from leanfleet.search.front import LINE, MEASURES
from leanfleet.search.objectives import Scale, hypervolume, nondominated
from leanfleet.search.protocols import Protocol
from leanfleet.search.state import State, trial_key
from leanfleet.search.strategies import Ask, Space
from leanfleet.search.trials import Bench, Pool, Seeds, Values, measured
from leanfleet.workers import Tick

Phase = Literal["start", "anchors", "search", "front"]

# What a kill loses at most, or a short training if that takes longer.
_SAVE_SECONDS = 60.0
_MISSING = np.full(2, np.nan)


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        phase: "start", "anchors", "search" or "front".
        step: Generations (or questions) done in this phase, seeds likewise; the pre-training is one.
        steps: How many there are.
        share: Share of the present one that is done.
        hypervolume: Of the best answer so far, in the protocol's measure, noise included; None before the first
            generation.
        seconds_left: Estimate until the end; None as long as there is none.
    """

    phase: Phase
    step: int
    steps: int
    share: float
    hypervolume: float | None
    seconds_left: float | None


Watch = Callable[[Progress], None]


class Trainings:
    """Does them, and keeps the books.

    Args:
        bench: The task, in this process.
        protocol: How to search.
        state: What is done already.
        pool: Who trains.
        budget: Time.
        watch: Is told about progress.

    Attributes:
        measure: Index of what the protocol measures.
        hypervolume: Best so far, for `watch`.
    """

    def __init__(
        self, bench: Bench, protocol: Protocol, state: State, pool: Pool, budget: Budget, watch: Watch
    ) -> None:
        self._plan, self._task = bench.plan, bench.task
        self._protocol, self._state, self._pool, self._watch = protocol, state, pool, watch
        self.budget = budget
        self.measure = MEASURES.index(protocol.measure)
        self.hypervolume: float | None = None
        if state.training_samples:
            # Until something is measured here: perhaps it goes on on another machine.
            trials = state.training_samples / (bench.task.steps * bench.task.batch_size)
            budget.took(1, state.seconds_training / trials)

    def expect(self, seconds_per_step: float) -> None:
        """Take note of what a step of the whole network takes, before there was any short training."""
        if seconds_per_step:
            self.budget.took(1, seconds_per_step * self._task.steps / self._pool.workers)

    @property
    def workers(self) -> int:
        """How many train at the same time."""
        return self._pool.workers

    @property
    def protocol(self) -> Protocol:
        """The protocol; with no more seeds a vector than there are anchors to compare with."""
        if not self._protocol.common:
            return self._protocol
        return replace(self._protocol, seeds=max(1, min(self._protocol.seeds, len(self._state.anchors))))

    @property
    def final_seconds(self) -> float:
        """What the final front takes, with all that the protocol wants."""
        return (self._protocol.population + LINE) * self._protocol.fresh * self.budget.seconds_per_trial

    def gains(
        self,
        rates: Values,
        seeds: Seeds,
        phase: Phase,
        step: int,
        steps: int | None = None,
        reserve: float = 0.0,
    ) -> Values:
        """Return the gains [n, 2] of short trainings, NaN where time ran out, and tell about progress.

        Args:
            rates: [n, groups].
            seeds: [n].
            phase: See `Progress`, as `step` and `steps`; as many steps as the protocol has questions if None.
            step: The present one.
            steps: How many there are.
            reserve: Seconds that must be left afterwards.
        """
        keys = [trial_key(vector, seed) for vector, seed in zip(rates, seeds.tolist(), strict=True)]
        found = np.array([self._state.begun.get(key, _MISSING) for key in keys]).reshape(-1, 2)
        done = int(measured(found).sum())
        steps = max(step + 1, self._protocol.questions) if steps is None else steps

        def tick() -> None:
            nonlocal done
            done += 1
            self.show(phase, step, steps, done / len(rates))

        costs = self._plan.macs_of_vectors(rates)
        missing = np.flatnonzero(~measured(found))
        # The dearest first: workers end together.
        missing = missing[np.argsort(-costs[missing], kind="stable")]
        while len(missing):
            part, missing = np.split(missing, [self._pool.workers * self._turns()])
            gains = self._train(rates[part], seeds[part], costs[part], tick, reserve)
            found[part] = gains
            if not measured(gains).all():
                break
            self._state.begun |= {keys[i]: found[i] for i in part.tolist()}
            if len(missing):
                self._state.seconds = self.budget.spent
                self._state.save()
        return found

    def _turns(self) -> int:
        """Return how many short trainings a worker does until what there is is saved."""
        return max(1, int(_SAVE_SECONDS / (self.budget.seconds_per_trial * self._pool.workers)))

    def _train(self, rates: Values, seeds: Seeds, costs: Values, tick: Tick, reserve: float) -> Values:
        begun, before = time.monotonic(), self._pool.seconds_training
        found = self._pool.gains(
            rates,
            seeds,
            costs,
            tick,
            self.budget.left - reserve,
            self.budget.seconds_per_trial * self._pool.workers,
        )
        trials, seconds = int(measured(found).sum()), time.monotonic() - begun
        self._state.seconds_training += self._pool.seconds_training - before
        self._state.training_samples += trials * self._task.steps * self._task.batch_size
        # Where there are more workers than short trainings, all could have done more in that time.
        self.budget.took(trials, seconds * min(1.0, len(rates) / self._pool.workers))
        return found

    def answer(self, space: Space, question: Ask, asked: int, reserve: float) -> Values:
        """Return the gains [n * seeds, 2] of a question's vectors; NaN where there was no time, or no hope.

        Args:
            space: What is searched.
            question: The vectors.
            asked: Number of the question.
            reserve: Seconds that must be left afterwards.
        """
        rates, count = question.rates, question.seeds
        seeds = self._seeds(len(rates), count, asked).reshape(len(rates), count)
        if not self._protocol.screening or count == 1:
            every = np.repeat(rates, count, axis=0)
            return self.gains(every, seeds.ravel(), "search", asked, reserve=reserve)
        gains = np.full((len(rates), count, 2), np.nan)
        gains[:, 0] = self.gains(rates, seeds[:, 0], "search", asked, reserve=reserve)
        f2 = self._f2(space.scale, gains[:, 0], seeds[:, 0])
        hopeful = np.flatnonzero(~np.isnan(f2))
        hopeful = hopeful[nondominated(space.f1(rates[hopeful]), f2[hopeful], self._doubt(space.scale))]
        more = np.repeat(rates[hopeful], count - 1, axis=0)
        found = self.gains(more, seeds[hopeful, 1:].ravel(), "search", asked, reserve=reserve)
        gains[hopeful, 1:] = found.reshape(len(hopeful), count - 1, 2)
        return gains.reshape(-1, 2)

    def f2(self, scale: Scale, question: Ask, gains: Values) -> Values:
        """Return the second objective [n] of an answer, the mean over what there is; NaN where there is nothing."""
        # Which seeds they were matters only where they are common, and then it is the same for every question.
        seeds = self._seeds(len(question.rates), question.seeds, 0)
        each = self._f2(scale, gains, seeds).reshape(-1, question.seeds)
        there = (~np.isnan(each)).sum(axis=1)
        return np.where(there > 0, np.nansum(each, axis=1) / np.maximum(there, 1), np.nan)

    def note(self, f1: Values, f2: Values) -> None:
        """Take note of an answer, for `watch`."""
        known = ~np.isnan(f2)
        volume = hypervolume(f1[known], f2[known]) if known.any() else 0.0
        self.hypervolume = max(volume, self.hypervolume or 0.0)

    def show(self, phase: Phase, step: int, steps: int, share: float) -> None:
        """Tell about progress."""
        # Until a short training was timed, there is no estimate but the budget.
        left = self.budget.left
        if phase != "start":
            asked = phase in ("anchors", "search")
            unasked = max(0, self._protocol.trials - sum(map(len, self._state.told))) if asked else 0
            final = self.final_seconds * (1.0 if asked else 1 - (step + share) / steps)
            left = min(unasked * self.budget.seconds_per_trial + final, left)
        self._watch(Progress(phase, step, steps, share, self.hypervolume, None if math.isinf(left) else left))

    def _seeds(self, vectors: int, seeds: int, asked: int) -> Seeds:
        """Return a seed for each short training: those of the anchors in turn, or new ones."""
        if self._protocol.common:
            turns = np.arange(vectors * seeds, dtype=np.int64)
            # Several of one vector: the same for all vectors. One of each: no single seed's luck for all.
            return turns % (seeds if seeds > 1 else len(self._state.anchors))
        return 1000 + sum(map(len, self._state.told[:asked])) + np.arange(vectors * seeds, dtype=np.int64)

    def _f2(self, scale: Scale, gains: Values, seeds: Seeds) -> Values:
        """Return the second objective [n] of single short trainings from their gains [n, 2]."""
        anchors = np.stack(self._state.anchors)[:, 0, self.measure]
        return scale.f2(gains[:, self.measure], anchors[seeds] if self._protocol.common else None)

    def _doubt(self, scale: Scale) -> float:
        """Return two standard errors of the difference of two single short trainings, in the second objective."""
        anchors = np.stack(self._state.anchors)[:, :, self.measure]
        if len(anchors) < 2:
            return math.inf
        noise = anchors[:, 1] - anchors[:, 0] if self._protocol.common else anchors - anchors.mean(axis=0)
        return float(2 * math.sqrt(2) * np.std(scale.f2(noise), ddof=1))
