"""A search from beginning to end: pre-training, anchors, the strategy's questions, the final front."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from leanfleet.data import DataSet, load
from leanfleet.errors import LutError, NetworkError
from leanfleet.federated import Optimiser
from leanfleet.search import cost as costs
from leanfleet.search.objectives import Scale, equidistant, hypervolume, nondominated
from leanfleet.search.pretrain import pretrain
from leanfleet.search.protocols import FAST, Protocol
from leanfleet.search.proxy import proxy
from leanfleet.search.state import State
from leanfleet.search.strategies import Space, Strategy
from leanfleet.search.trials import Bench, Pool, Task, Values
from leanfleet.subnet.lut import Lut, Row
from leanfleet.workers import one_thread

OPTIMISER: Final = Optimiser(0.1, weight_decay=1e-3)
"""Local training as experiment files have it by default."""

_FRESH = 10**9
_LINE = 7
_FEWEST_SEEDS, _FEWEST_ROWS = 3, 8
# Nearer than this to an extreme, in the first objective, a vector is taken for it.
_NEAR = 1e-3
_MEASURES = ("accuracy", "loss")


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        phase: "start", "anchors", "search" or "front".
        step: Generations (or questions) done in this phase, steps or seeds likewise.
        steps: How many there are.
        share: Share of the present one that is done.
        hypervolume: Of what was measured so far, noise included; None before the first generation.
        seconds_left: Estimate until the end; None as long as there is none.
    """

    phase: Literal["start", "anchors", "search", "front"]
    step: int
    steps: int
    share: float
    hypervolume: float | None
    seconds_left: float | None


Watch = Callable[[Progress], None]


def search(
    network: str,
    data: DataSet | str,
    out: Path,
    *,
    protocol: Protocol = FAST,
    cost: Literal["macs", "seconds"] = "macs",
    keep: tuple[str, ...] | None = None,
    optimiser: Optimiser = OPTIMISER,
    seed: int = 0,
    workers: int = 1,
    budget_seconds: float | None = None,
    resume: bool = False,
    watch: Watch = lambda progress: None,
) -> Lut:
    """Search Pareto-optimal dropout vectors and write them as a lookup table (Rapp et al. 2022, "DSE").

    Args:
        network: A reference network, or `package.module:function` of the user's.
        data: What the fleet will train on, or what names it; only distorted copies of training images are used.
        out: File of the table. What has been done so far lies in `OUT.partial` until it is written.
        protocol: How to search.
        cost: First objective: forward MACs per sample, or seconds of a step on this machine.
        keep: Layers that are never dropped; the reference network's own choice if None.
        optimiser: Local training of the fleet.
        seed: Everything random.
        workers: Worker processes.
        budget_seconds: Time for everything; the best front so far is written at its end.
        resume: Go on where a search for the same file was interrupted.
        watch: Is told about progress.

    Raises:
        UserError: Network or data cannot be used, or there is (or is not) something to resume.
        StorageError: The disk refuses.
    """
    begun = time.monotonic()
    place = State.place(out, resume=resume)
    data = load(data) if isinstance(data, str) else data
    images = proxy(data, protocol.held_out, seed)
    task = Task(network, keep, images, optimiser, protocol.batch_size, protocol.steps, seed)
    settings = {
        "network": network,
        "keep": keep,
        "data": data.name,
        "protocol": json.loads(json.dumps(asdict(protocol))),
        "cost": cost,
        "optimiser": json.loads(json.dumps(asdict(optimiser))),
        "seed": seed,
    }
    state = State.open(place, json.loads(json.dumps(settings)), resume=resume)
    pool = Pool(task, workers)
    try:
        found = _Search(
            task, protocol, cost, state, pool, _Clock(begun, state.seconds, budget_seconds), watch
        ).go()
    finally:
        pool.close()
    about = {**settings, "version": version("leanfleet"), **found.about}
    lut = Lut.costed(found.plan, found.rows, f"search ({protocol.name}, {data.name})", about)
    lut.save(out)
    state.remove()
    return lut


@dataclass
class _Clock:
    """Time spent by a search, over all its parts, and what is left of its budget."""

    begun: float
    before: float
    budget: float | None

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.begun

    @property
    def left(self) -> float:
        return float("inf") if self.budget is None else self.budget - self.spent


@dataclass(frozen=True)
class _Found:
    plan: Any
    rows: list[Row]
    about: dict[str, Any]


class _Search:
    """One search in progress."""

    def __init__(
        self, task: Task, protocol: Protocol, cost: str, state: State, pool: Pool, clock: _Clock, watch: Watch
    ) -> None:
        self.task, self.protocol, self.state, self.pool, self.clock, self.watch = (
            task, protocol, state, pool, clock, watch,
        )  # fmt: skip
        self.bench = Bench(task)
        self.plan = self.bench.plan
        if not self.plan.groups:
            raise NetworkError(f"network '{task.network}': nothing in it can be dropped")
        self.macs = costs.macs(self.plan)
        self.cost = self.macs if cost == "macs" else self._profiled()
        self.hypervolume: float | None = None
        self.seconds, self.trials = 0.0, 0

    def go(self) -> _Found:
        """Do everything that is not done yet."""
        if not self.state.params:
            self._pretrain()
        self.pool.begin(self.state.params)
        scale = self._anchors()
        space = Space(len(self.plan.groups), self.cost, scale)
        strategy = self._questions(space)
        return self._front(space, strategy)

    # -- phases ----------------------------------------------------------------------------------------------

    def _profiled(self) -> costs.StepTime:
        if self.state.profile is None:
            with one_thread():
                found = costs.StepTime.profile(self.task)
            self.state.profile = found.coefficients
        return costs.StepTime(self.plan, self.state.profile)

    def _pretrain(self) -> None:
        with one_thread():
            params, accuracy = pretrain(
                self.bench,
                self.protocol.start_accuracy,
                self.clock.left / 4,
                lambda step, steps, share: self._show("start", step, steps, share),
            )
        self.state.params, self.state.start_accuracy = params, accuracy
        self._save()

    def _anchors(self) -> Scale:
        extremes = np.array([[0.0] * len(self.plan.groups), [0.5] * len(self.plan.groups)])
        while len(self.state.anchors) < self.protocol.anchors:
            done = len(self.state.anchors)
            if done >= max(2, self.protocol.seeds) and self.clock.left < 0.8 * (self.clock.budget or 0.0):
                break
            self.state.anchors.append(
                self._gains(extremes, np.full(2, done), "anchors", done, self.protocol.anchors)
            )
            self._save()
        gains = np.stack(self.state.anchors)[:, :, self._measure].mean(axis=0)
        if not gains[0] > gains[1]:
            raise LutError(
                f"{self.task.network}: half of all filters learn as much as all of them in a short training; "
                "there is nothing to search for: use more steps, or the uniform table"
            )
        cost = self.cost(extremes)
        if not cost[0] > cost[1]:
            raise LutError(
                f"{self.task.network}: with half of all filters dropped a step takes no less time here; there is "
                "nothing to search for: use --cost macs"
            )
        return Scale((float(cost[0]), float(cost[1])), (float(gains[0]), float(gains[1])))

    def _questions(self, space: Space) -> Strategy:
        if self.state.trials is None:
            reserve = min(self._final_seconds(self.protocol.fresh), self.clock.left / 2)
            affordable = (self.clock.left - reserve) / self._seconds_per_trial()
            self.state.trials = (
                self.protocol.trials if affordable > self.protocol.trials else max(0, int(affordable))
            )
        strategy = self.protocol.within(self.state.trials).make(space, self.task.seed)
        steps = self._count(space)
        asked = 0
        while (question := strategy.ask()) is not None:
            if asked == len(self.state.told):
                needed = len(question.rates) * question.seeds * self._seconds_per_trial()
                if asked and needed > self.clock.left - self._final_seconds(_FEWEST_SEEDS):
                    break
                seeds = self._seeds(len(question.rates), question.seeds, asked)
                self.state.told.append(
                    self._gains(
                        np.repeat(question.rates, question.seeds, axis=0), seeds, "search", asked, steps
                    )
                )
                self._save()
            strategy.tell(self._f2(space.scale, question.rates, question.seeds, asked))
            asked += 1
            self.hypervolume = self._observed(space, question.rates, question.seeds, asked - 1)
        return strategy

    def _front(self, space: Space, strategy: Strategy) -> _Found:
        if self.state.final_rates is None:
            self.state.final_rates = self._candidates(space, strategy)
        rates, gains = self.state.final_rates, self.state.final
        while len(gains) < self.protocol.fresh:
            if len(gains) > 1 and len(rates) * self._seconds_per_trial() > self.clock.left:
                break
            seeds = np.full(len(rates), _FRESH + len(gains))
            gains.append(self._gains(rates, seeds, "front", len(gains), self.protocol.fresh))
            self._save()
        return self._written(space, rates, np.stack(gains, axis=1))

    def _candidates(self, space: Space, strategy: Strategy) -> Values:
        """Return what is measured anew: both extremes, one rate for all layers, then the strategy's front."""
        front = np.unique(strategy.front().astype(np.float32), axis=0).astype(np.float64)
        f1 = space.f1(front)
        front = front[(f1 > _NEAR) & (f1 < 1 - _NEAR)]
        # Where time is short, fewer rows rather than rows that nobody can believe.
        affordable = self.clock.left / self._seconds_per_trial()
        rows = int(min(self.protocol.population, affordable / _FEWEST_SEEDS - _LINE))
        inner = equidistant(space.f1(front), max(_FEWEST_ROWS, rows) - 2)
        return np.concatenate([space.extremes, self._uniform_line(space), front[inner]])

    def _written(self, space: Space, rates: Values, gains: Values) -> _Found:
        """Return rows and provenance from the fresh gains [vectors, seeds, 2]; only they are believed."""
        gain = gains[:, :, self._measure]
        # The first two rows: no dropout, and half of everything dropped.
        full, half = 0, 1
        scale = replace(space.scale, gain=(float(gain[full].mean()), float(gain[half].mean())))
        f1, f2 = space.f1(rates), scale.f2(gain, gain[full])
        mean = f2.mean(axis=1)
        error = f2.std(axis=1, ddof=1) / np.sqrt(f2.shape[1]) if f2.shape[1] > 1 else np.zeros(len(rates))
        # A row that is beaten by less than the noise is kept: a gap in the table costs more.
        keep = nondominated(f1, mean, 2 * error)
        keep[[full, half]] = True
        line = [half, *range(2, 2 + _LINE), full]
        chosen = np.flatnonzero(keep)
        seconds = self.cost(rates) if isinstance(self.cost, costs.StepTime) else None
        rows = [
            Row(
                tuple(rates[i].tolist()), self.plan.macs(rates[i].tolist()), float(mean[i]), float(error[i]),
                None if seconds is None else float(seconds[i]),
            )
            for i in sorted(chosen, key=lambda i: self.plan.macs(rates[i].tolist()))
        ]  # fmt: skip
        about = {
            "measure": self.protocol.measure,
            "start_accuracy": self.state.start_accuracy,
            "hypervolume": hypervolume(f1[chosen], mean[chosen]),
            "hypervolume_uniform": hypervolume(f1[line], mean[line]),
            "uniform": [[float(f1[i]), float(mean[i]), float(error[i])] for i in line],
            "front": [[float(f1[i]), float(mean[i]), float(error[i])] for i in chosen],
            "fresh_seeds": gains.shape[1],
            "training_samples": self.state.training_samples,
            "seconds": round(self.clock.spent, 1),
            "seconds_training": round(self.state.seconds_training, 1),
        }
        return _Found(self.plan, rows, about)

    # -- measuring -------------------------------------------------------------------------------------------

    @property
    def _measure(self) -> int:
        return _MEASURES.index(self.protocol.measure)

    def _gains(
        self, rates: Values, seeds: np.ndarray[Any, np.dtype[np.int64]], phase: Any, step: int, steps: int
    ) -> Values:
        """Return the gains [n, 2] of short trainings, and tell about progress."""
        done, begun = 0, time.monotonic()

        def tick() -> None:
            nonlocal done
            done += 1
            self._show(phase, step, steps, done / len(rates))

        before = self.pool.seconds_training
        found = self.pool.gains(rates, seeds, self.macs(rates), tick)
        self.state.seconds_training += self.pool.seconds_training - before
        self.state.training_samples += len(rates) * self.task.steps * self.task.batch_size
        self.seconds, self.trials = self.seconds + time.monotonic() - begun, self.trials + len(rates)
        return found

    def _seeds(self, vectors: int, seeds: int, asked: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return a seed for each short training: those of the anchors in turn, or new ones."""
        if self.protocol.common:
            turns = np.arange(vectors * seeds, dtype=np.int64)
            # Several of one vector: the same for all vectors. One of each: no single seed's luck for all.
            return turns % (seeds if seeds > 1 else len(self.state.anchors))
        return 1000 + sum(map(len, self.state.told[:asked])) + np.arange(vectors * seeds, dtype=np.int64)

    def _f2(self, scale: Scale, rates: Values, seeds: int, asked: int) -> Values:
        """Return the second objective [n] of a question, the mean over its seeds."""
        gains = self.state.told[asked][:, self._measure]
        reference = None
        if self.protocol.common:
            anchors = np.stack(self.state.anchors)[:, 0, self._measure]
            reference = anchors[self._seeds(len(rates), seeds, asked)]
        mean: Values = scale.f2(gains, reference).reshape(len(rates), seeds).mean(axis=1)
        return mean

    def _observed(self, space: Space, rates: Values, seeds: int, asked: int) -> float:
        found = hypervolume(space.f1(rates), self._f2(space.scale, rates, seeds, asked))
        return max(found, self.hypervolume or 0.0)

    def _uniform_line(self, space: Space) -> Values:
        """Return vectors of one rate for all layers, spread evenly in MACs."""
        low, high = (float(self.macs(vector[None])[0]) for vector in space.extremes[::-1])
        rates = [self.plan.uniform_rate(float(m), 0.5) for m in np.linspace(low, high, _LINE + 2)[1:-1]]
        return np.array([self.plan.uniform(rate) for rate in rates])

    # -- time ------------------------------------------------------------------------------------------------

    def _seconds_per_trial(self) -> float:
        # Measured in this process: a search may go on on another machine.
        return self.seconds / self.trials if self.trials else 1.0

    def _final_seconds(self, seeds: int) -> float:
        return (self.protocol.population + _LINE) * seeds * self._seconds_per_trial()

    def _count(self, space: Space) -> int:
        fitted = self.protocol.within(self.state.trials or 0)
        return 1 + (len(fitted.refits) if fitted.strategy == "model" else fitted.generations)

    def _save(self) -> None:
        self.state.seconds = self.clock.spent
        self.state.save()

    def _show(self, phase: Any, step: int, steps: int, share: float) -> None:
        left: float | None = None
        if self.trials:
            trials = self.protocol.within(self.state.trials or self.protocol.trials).trials
            unasked = max(0, trials - sum(map(len, self.state.told))) if phase in ("anchors", "search") else 0
            final = self._final_seconds(self.protocol.fresh) * (
                1 - (step + share) / steps if phase == "front" else 1
            )
            left = min(unasked * self._seconds_per_trial() + final, max(0.0, self.clock.left))
        self.watch(Progress(phase, step, steps, share, self.hypervolume, left))
