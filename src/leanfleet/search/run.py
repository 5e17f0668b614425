"""A search from beginning to end: pre-training, anchors, the strategy's questions, the final front."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from torch import Tensor

from leanfleet.data import DataSet, load
from leanfleet.errors import LutError, NetworkError
from leanfleet.federated import Optimiser
from leanfleet.ledger import PHI
from leanfleet.profiling import StepTime, Workload
from leanfleet.search.budget import Budget
from leanfleet.search.front import Candidates, candidates, table
from leanfleet.search.objectives import Scale
from leanfleet.search.pretrain import pretrain, start_goal
from leanfleet.search.protocols import FAST, Protocol
from leanfleet.search.proxy import proxy
from leanfleet.search.sensitivity import sensitivities
from leanfleet.search.state import State
from leanfleet.search.strategies import HIGHEST, Ask, Space, Strategy, grid_rates
from leanfleet.search.ties import ties
from leanfleet.search.trainings import Trainings, Watch
from leanfleet.search.trials import Bench, Pool, Task, Values, measured
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut, Row
from leanfleet.workers import check_main, one_thread

OPTIMISER: Final = Optimiser(0.1, weight_decay=1e-3)
"""Local training as experiment files have it by default."""

# How short trainings drop channels, and what a training step costs in forward passes: for who reads a table.
_TRAINED: Final = {"drop": "fixed", "scale": True, "phi": PHI}
_FRESH = 10**9
_SAME = 1e-6
# A look at the final front that time cuts off is lost.
_CAREFUL = 0.8
# Worker processes take seconds to start: a search that has no more time than this does without.
_WORKERS_SECONDS = 15.0
Cost = Callable[[Values], Values]
"""What vectors [n, groups] cost, [n]."""

# Of the time left: the most that each of the first phases takes.
_PROFILE_SHARE, _START_SHARE, _ANCHORS_SHARE = 0.1, 0.25, 0.2


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
    begun: float | None = None,
    resume: bool = False,
    watch: Watch = lambda progress: None,
) -> Lut:
    """Search Pareto-optimal dropout vectors and write them as a lookup table (Rapp et al. 2022, "DSE").

    Args:
        network: A reference network, or `package.module:function` or `FOLDER/FILE.py:function` of the user's.
        data: What the fleet will train on, or what names it; only distorted copies of training images are used.
        out: File of the table. What has been done so far lies in `OUT.partial` until it is written.
        protocol: How to search.
        cost: First objective: forward MACs per sample, or seconds of a step on this machine.
        keep: Layers that are never dropped; the reference network's own choice if None.
        optimiser: Local training of the fleet.
        seed: Everything random.
        workers: Worker processes; a search of a few seconds does without.
        budget_seconds: Time for everything; the best front so far is written at its end, and `about["cut_short"]`
            says what there was no time for.
        begun: When the budget began to run, in monotonic seconds; now if None.
        resume: Go on where a search for the same file was interrupted.
        watch: Is told about progress.

    Raises:
        UserError: Network or data cannot be used, or there is (or is not) something to resume.
        StorageError: The disk refuses.
    """
    check_main()
    begun = time.monotonic() if begun is None else begun
    if cost not in ("macs", "seconds"):
        raise LutError(f"cost = '{cost}': say macs or seconds")
    place = State.place(out, resume=resume)
    data = load(data) if isinstance(data, str) else data
    images = proxy(data, protocol.held_out, seed)
    task = Task(network, keep, images, optimiser, protocol.batch_size, protocol.steps, seed)
    bench = Bench(task)
    if not bench.plan.groups:
        raise NetworkError(f"network '{network}': nothing in it can be dropped")
    if len(bench.plan.groups) == 1:
        raise LutError(
            f"{network}: there is only one rate to choose, so a search finds no more than the uniform table"
        )
    asked = {
        "network": network,
        "keep": keep,
        "data": data.name,
        "protocol": asdict(protocol),
        "cost": cost,
        "optimiser": asdict(optimiser),
        "seed": seed,
    }
    settings: dict[str, Any] = json.loads(json.dumps(asked))
    # A search does not go on with another network or other images under the same names.
    state = State.open(place, settings | {"contents": _contents(bench)}, resume=resume)
    budget = Budget(begun, state.seconds, budget_seconds)
    state.reopen(budget.seconds)
    # Not after the pre-training: what cannot be written is known at once.
    state.save()
    price = bench.plan.macs_of_vectors if cost == "macs" else _profiled(bench, state, budget)
    pool = Pool(task, workers if budget.left > _WORKERS_SECONDS else 1)
    try:
        trainings = Trainings(bench, protocol, state, pool, budget, watch)
        found = _Search(bench, protocol, price, state, trainings).go(pool.begin)
    except LutError:
        # There is nothing to search for, and there will be none.
        state.remove()
        raise
    finally:
        pool.close()
    about = {**settings, **_TRAINED, "version": version("leanfleet"), **found.about}
    # Counts between which a rate is rounded: with others the same table would train other networks.
    about["grids"] = [list(group.grid) for group in bench.plan.groups]
    # Where time was too short for more than one rate for all layers, nothing was found.
    found_any = any(np.ptp(row.rates) > _SAME for row in found.rows)
    origin = f"search ({protocol.name}, {data.name})" if found_any else "uniform"
    lut = Lut.costed(found.plan, found.rows, origin, about)
    lut.save(out)
    state.remove()
    return lut


def _contents(bench: Bench) -> dict[str, Any]:
    """Return what tells a network and its images from others of the same name."""
    data = bench.task.data
    parts = (part for split in (data.train, data.test) for part in (split.images, split.labels))
    sums = [zlib.crc32(part.contiguous().numpy().data) for part in parts]
    return {
        "fingerprint": bench.plan.fingerprint,
        "parameters": {name: list(p.shape) for name, p in bench.params.items()},
        "data": [len(data.train), len(data.test), *sums],
    }


def _profiled(bench: Bench, state: State, budget: Budget) -> StepTime:
    """Return what steps take here, or took when the search began."""
    if state.profile is None:
        task = bench.task
        work = Workload(bench.plan, task.optimiser, task.data.shape, len(task.data.classes), task.batch_size)
        with one_thread():
            state.profile = StepTime.profile(work, budget.left * _PROFILE_SHARE).coefficients
    return StepTime(bench.plan, state.profile)


@dataclass(frozen=True)
class _Found:
    plan: SubnetPlan
    rows: list[Row]
    about: dict[str, Any]


class _Search:
    """One search in progress."""

    def __init__(
        self, bench: Bench, protocol: Protocol, cost: Cost, state: State, trainings: Trainings
    ) -> None:
        self.bench, self.protocol, self.state, self.trainings = bench, protocol, state, trainings
        self.plan, self.budget, self.cost = bench.plan, trainings.budget, cost
        self._goal = start_goal(protocol.start_accuracy, len(bench.task.data.classes))
        self._extremes = np.array([[0.0] * len(self.plan.groups), [HIGHEST] * len(self.plan.groups)])

    def go(self, begin: Callable[[dict[str, Tensor]], None]) -> _Found:
        """Do everything that is not done yet; `begin` is given what short trainings start from."""
        # Known before anything is trained: whether a cost is one.
        costs = scaled_costs(self.bench.task.network, self.cost(self._extremes))
        if not self.state.params:
            self._pretrain()
        begin(self.state.params)
        gains = self._anchors()
        grid = grid_rates(self.plan.groups) if self.protocol.integer else None
        # Without a second objective there is one rate for all layers, whose costs are normalised all the same.
        space = Space(len(self.plan.groups), self.cost, Scale(costs, gains or (1.0, 0.0)), grid)
        strategy = self._strategy(space, judged=gains is not None)
        if gains is not None:
            self._questions(space, strategy)
        return self._front(space, strategy)

    def _strategy(self, space: Space, *, judged: bool) -> Strategy:
        protocol, seed = self.trainings.protocol, self.bench.task.seed
        sensitivity = np.zeros(len(self.plan.groups))
        if protocol.seeded == "careful" and judged:
            with one_thread():
                sensitivity = sensitivities(self.bench, self.state.params)
        return protocol.make(space, seed, sensitivity, ties(self.plan.groups))

    def _pretrain(self) -> None:
        seconds = self.budget.left * _START_SHARE
        with one_thread():
            params, accuracy, per_step = pretrain(
                self.bench, self._goal, seconds, partial(self.trainings.show, "start", 0, 1)
            )
        self.trainings.expect(per_step)
        self.state.params, self.state.start_accuracy = params, accuracy
        self._save()

    def _anchors(self) -> tuple[float, float] | None:
        """Return what no dropout and half of everything gain; None where there was no time to see a difference."""
        anchors, wanted, left = self.state.anchors, self.protocol.anchors, self.budget.left
        # What is known is normalised by those that were there: a search that was begun keeps them.
        while len(anchors) < wanted and not self.state.anchored and self.state.final_rates is None:
            pairs = min(max(1, self.trainings.workers // 2), wanted - len(anchors))
            share = _ANCHORS_SHARE if len(anchors) >= self.protocol.seeds else 2 * _ANCHORS_SHARE
            taken = left - self.budget.left + 2 * pairs * self.budget.seconds_per_trial
            if anchors and taken > share * left:
                break
            seeds = np.repeat(np.arange(len(anchors), len(anchors) + pairs), 2)
            rates = np.tile(self._extremes, (pairs, 1))
            gains = self.trainings.gains(rates, seeds, "anchors", len(anchors), wanted)
            if not measured(gains).all():
                break
            for pair in gains.reshape(pairs, 2, 2):
                self.state.keep(anchors, pair)
            self._save()
        if not anchors:
            return None
        full, half = np.stack(anchors)[:, :, self.trainings.measure].mean(axis=0).tolist()
        if full > half:
            return full, half
        if len(anchors) < wanted:
            # Chance perhaps: that is no reason to end without a table.
            return None
        reached = self.state.start_accuracy
        hint = f" (after a pre-training that has {reached:.0%}, not {self._goal:.0%}: is --lr right?)"
        raise LutError(
            f"{self.bench.task.network}: half of all filters learn as much as all of them in a short training"
            f"{hint if reached < self._goal else ''}; there is nothing to search for, and the uniform table is as good"
        )

    def _questions(self, space: Space, strategy: Strategy) -> None:
        """Ask until the strategy has no more questions, or there is no more time."""
        state = self.state
        if state.reserve is None:
            state.reserve = min(self.trainings.final_seconds, self.budget.left / 2)
        # The question that was under way is not among them: `allowed` has one more.
        for allowed, told in zip(state.allowed, list(state.told), strict=False):
            # An answer that is there already brings the strategy to where it was.
            question = strategy.ask(allowed)
            assert question is not None
            self._tell(space, strategy, question, told)
        whole = True
        while whole and state.final_rates is None:
            begun, trained = time.monotonic(), state.seconds_training
            under_way = len(state.allowed) > len(state.told)
            allowed = state.allowed[-1] if under_way else self.budget.trials(state.reserve)
            question = strategy.ask(allowed)
            if question is None:
                break
            if not under_way:
                # With less time left the same question would not be asked again, and what was answered of it be lost.
                state.allowed.append(allowed)
                state.anchored = True
                self._save()
            told = self.trainings.answer(space, question, len(state.told), state.reserve)
            whole = bool(measured(told).reshape(-1, question.seeds).any(axis=1).all())
            if whole or not strategy.needs_all:
                state.keep(state.told, told)
                self._tell(space, strategy, question, told)
            self._save()
            seconds = time.monotonic() - begun
            state.seconds_search += seconds
            state.seconds_outside += seconds - (state.seconds_training - trained)

    def _tell(self, space: Space, strategy: Strategy, question: Ask, told: Values) -> None:
        f2 = self.trainings.f2(space.scale, question, told)
        strategy.tell(f2)
        self.trainings.note(space.f1(question.rates), f2)

    def _front(self, space: Space, strategy: Strategy) -> _Found:
        population, state = self.protocol.population, self.state
        if state.final_rates is None:
            affordable = _CAREFUL * self.budget.trials()
            given = candidates(self.plan, space, strategy.front(), population, affordable)
            state.final_rates, state.final_line, state.final_mixed = given.rates, given.line, given.mixed
            self._save()
        given = Candidates(state.final_rates, state.final_line, state.final_mixed)
        gains = state.final
        while len(gains) < self.protocol.fresh and len(given.rates) <= self.budget.trials():
            seeds = np.full(len(given.rates), _FRESH + len(gains))
            found = self.trainings.gains(given.rates, seeds, "front", len(gains), self.protocol.fresh)
            if not measured(found).all():
                break
            state.keep(gains, found)
            self._save()
        all_gains = np.stack(gains, axis=1) if gains else np.empty((len(given.rates), 0, 2))
        timed = isinstance(self.cost, StepTime)
        rows, about = table(
            self.plan, space, given, all_gains, self.trainings.measure, population, timed=timed
        )
        ended = strategy.ask(math.inf) is None
        return _Found(
            self.plan, rows, {"measure": self.protocol.measure, **about, **self._about(given, ended)}
        )

    def _about(self, given: Candidates, ended: bool) -> dict[str, Any]:
        state, protocol = self.state, self.protocol
        questions = [int(measured(told).sum()) for told in state.told]
        # Screening leaves some out on purpose; a strategy that has no more questions may have asked fewer.
        asked = sum(questions) if protocol.screening else sum(map(len, state.told))
        wanted = asked if ended else protocol.trials
        cut = [f"pre-training to {self._goal:.0%}"] if state.start_accuracy < self._goal else []
        done = {
            "anchors": (len(state.anchors), protocol.anchors),
            "short trainings": (sum(questions), wanted),
            "rows judged": (len(given.rates) - given.line if state.final else 0, protocol.population),
            "fresh seeds": (len(state.final), protocol.fresh),
        }
        return {
            "start_accuracy": state.start_accuracy,
            "questions": questions,
            "cut_short": cut + [f"{name} {n} of {every}" for name, (n, every) in done.items() if n < every],
            "training_samples": state.training_samples,
            "budget_seconds": None if math.isinf(self.budget.seconds) else self.budget.seconds,
            "seconds": round(self.budget.spent, 1),
            "seconds_training": round(state.seconds_training, 1),
            "share_outside_training": state.seconds_outside / max(state.seconds_search, 1e-9),
        }

    def _save(self) -> None:
        self.state.seconds = self.budget.spent
        self.state.save()


def scaled_costs(network: str, cost: Values) -> tuple[float, float]:
    """Return what the first objective is normalised by: the cost of no dropout, and of half of everything.

    Raises:
        LutError: It makes no difference: there is nothing to search for.
    """
    full, half = cost.tolist()
    if not full > half:
        raise LutError(
            f"{network}: with half of all filters dropped a step takes no less time here; there is nothing to search "
            "for: use --cost macs"
        )
    return full, half
