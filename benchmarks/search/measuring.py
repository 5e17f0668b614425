"""Runs the searches of a study, and judges what they found with seeds that no search has seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from settings import NOISE, Job, SearchStudy
from variants import UNIFORM

from leanfleet.data import DataSet
from leanfleet.errors import RecordError
from leanfleet.randomness import key, numpy_generator
from leanfleet.search import OPTIMISER, PAPER, Progress, Protocol, search
from leanfleet.search.objectives import equidistant
from leanfleet.search.pretrain import pretrain, start_goal
from leanfleet.search.proxy import proxy
from leanfleet.search.strategies import HIGHEST, Ask, Space, Strategy
from leanfleet.search.trials import Bench, Pool, Task, Values
from leanfleet.storage import load_tensors, save_tensors, write_json
from leanfleet.workers import one_thread

# Searches count theirs from 0, 1,000 and 1,000,000,000.
_FIRST_SEED = 2_000_000
# Short trainings between two looks at the disk.
_CHUNK = 64

FULL_SIZE = "full size"
"""What `Watch` is told while vectors are trained at the paper's size."""

Watch = Callable[[str, float], None]
"""Is told what is going on, and the share of it that is done."""


class Recorded:
    """A strategy that is watched; it answers like the one within.

    Args:
        strategy: The one within.
        fronts: Is given the front [m, groups] after every question.
    """

    def __init__(self, strategy: Strategy, fronts: list[Values]) -> None:
        self._strategy, self._fronts = strategy, fronts
        self.needs_all = strategy.needs_all

    def ask(self, trials: float) -> Ask | None:
        """Return the next question."""
        return self._strategy.ask(trials)

    def tell(self, f2: Values) -> None:
        """Pass the answer on, and keep the front that comes of it."""
        self._strategy.tell(f2)
        self._fronts.append(self._strategy.front())

    def front(self) -> Values:
        """Return the best vectors so far."""
        return self._strategy.front()


def recorded(protocol: Protocol, fronts: list[Values]) -> Protocol:
    """Return a protocol that searches alike, and keeps its fronts."""

    class Watched(Protocol):
        def make(self, space: Space, seed: int, *given: Any) -> Strategy:
            return Recorded(super().make(space, seed, *given), fronts)

    # Its own evaluation of the final front is not what is compared here.
    values = {f.name: getattr(protocol, f.name) for f in fields(protocol)}
    return Watched(**{**values, "fresh": 0})


class Judge:
    """Trains vectors as the paper does, all with the same few seeds, and remembers every result.

    Args:
        study: The study.
        paper: The paper's protocol: sizes of its short trainings count.
        data: What it searches on.
        seed: The study's, not one of those.
        folder: Where to remember.
        workers: Worker processes.
    """

    def __init__(
        self, study: SearchStudy, paper: Protocol, data: DataSet, seed: int, folder: Path, workers: int
    ) -> None:
        recipe = study.recipe
        images = proxy(data, paper.held_out, seed)
        self._task = Task(recipe.network, None, images, OPTIMISER, paper.batch_size, paper.steps, seed)
        self._bench = Bench(self._task)
        self.plan = self._bench.plan
        self._goal = start_goal(paper.start_accuracy, len(data.classes))
        self._fresh, self._workers = recipe.fresh, workers
        # Judgements of another scale or with more seeds are others.
        mark = key(recipe.network, data.name, recipe.fresh, repr(paper)) % 16**8
        self._start = folder / f"start-s{seed}-{mark:08x}.safetensors"
        self._file = folder / f"judged-s{seed}-{mark:08x}.json"
        told = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self._known: dict[str, list[list[float]]] = told

    def gains(self, rates: Values, watch: Callable[[float], None]) -> Values:
        """Return the gains [n, seeds, 2] of vectors [n, groups] in accuracy and in loss."""
        keys = [vector.astype(np.float32).tobytes().hex() for vector in rates]
        new = {key: vector for key, vector in zip(keys, rates, strict=True) if key not in self._known}
        if new:
            self._train(new, watch)
        return np.array([self._known[key] for key in keys])

    def _train(self, new: dict[str, Values], watch: Callable[[float], None]) -> None:
        done, total = 0, len(new) * self._fresh

        def tick() -> None:
            nonlocal done
            done += 1
            watch(done / total)

        start = self._begin()
        pool = Pool(self._task, self._workers)
        try:
            pool.begin(start)
            names, size = list(new), max(1, _CHUNK // self._fresh)
            for part in (names[at : at + size] for at in range(0, len(names), size)):
                each = np.repeat(np.stack([new[name] for name in part]), self._fresh, axis=0)
                seeds = np.tile(np.arange(self._fresh, dtype=np.int64) + _FIRST_SEED, len(part))
                costs = np.array([self.plan.macs(vector) for vector in each])
                gains = pool.gains(each, seeds, costs, tick).reshape(len(part), self._fresh, 2)
                self._known |= dict(zip(part, gains.tolist(), strict=True))
                write_json(self._file, self._known)
        finally:
            pool.close()

    def _begin(self) -> dict[str, Any]:
        """Return where every short training starts: where the paper's protocol does."""
        if not self._start.is_file():
            with one_thread():
                start = pretrain(self._bench, self._goal, float("inf"), lambda share: None)
            save_tensors(self._start, start.params, {"accuracy": repr(start.accuracy)})
        return load_tensors(self._start)[0]

    def rows(self, front: Values, points: int) -> Values:
        """Return the vectors of a front that are judged: both extremes, and others spread evenly in cost."""
        extremes = np.array([[0.0], [HIGHEST]]) * np.ones(len(self.plan.groups))
        inner = np.unique(front.astype(np.float32), axis=0).astype(np.float64)
        inner = inner[[vector.max() > 0 and vector.min() < HIGHEST for vector in inner]]
        macs = np.array([self.plan.macs(vector) for vector in inner])
        return np.concatenate([extremes, inner[equidistant(macs, points - 2)]])

    def line(self, points: int) -> Values:
        """Return vectors of one rate for all layers, evenly spread in MACs."""
        low, high = (self.plan.macs(self.plan.uniform(rate)) for rate in (HIGHEST, 0.0))
        rates = [self.plan.uniform_rate(float(macs), HIGHEST) for macs in np.linspace(low, high, points)]
        return np.array([self.plan.uniform(rate) for rate in rates])


def do(study: SearchStudy, job: Job, data: DataSet, folder: Path, workers: int, watch: Watch) -> None:
    """Do one job of a study, or the rest of it, and write its record.

    Args:
        study: The study.
        job: What to do.
        data: What to search on.
        folder: Where the study's records are.
        workers: Worker processes.
        watch: Is told how it goes.
    """
    identity = study.identity(job)
    found: dict[str, Any] = {"fronts": [], "trials": [0]}
    if job.strategy not in (NOISE, UNIFORM):
        found = _searched(study, job, data, folder, workers, watch)
    judge = Judge(study, study.paper, data, job.seed, folder, workers)
    if job.strategy == NOISE:
        generator = numpy_generator(job.seed, "study vectors")
        vectors = generator.uniform(0, HIGHEST, (study.recipe.vectors, len(judge.plan.groups)))
        fronts = {0: np.concatenate([judge.rows(vectors[:0], 2), vectors])}
        full = replace(PAPER, held_out=study.paper.held_out)
        whole = Judge(study, full, data, job.seed, folder, workers)
        found["full_gains"] = whole.gains(fronts[0], lambda share: watch(FULL_SIZE, share)).tolist()
    elif job.strategy == UNIFORM:
        fronts = {0: judge.rows(judge.line(study.recipe.points), study.recipe.points)}
    else:
        chosen = _spread(len(found["fronts"]), study.checkpoints(job.strategy))
        fronts = {at: judge.rows(np.array(found["fronts"][at]), study.recipe.points) for at in chosen}
    protocol = study.paper if job.strategy in (NOISE, UNIFORM) else study.protocol(job.strategy)
    checkpoints = []
    for number, (at, rates) in enumerate(fronts.items()):
        gains = judge.gains(rates, lambda share, n=number: watch("judged", (n + share) / len(fronts)))  # type: ignore[misc]
        checkpoints.append({
            "question": at,
            "samples": found["trials"][at] * protocol.steps * protocol.batch_size,
            "macs": [judge.plan.macs(vector) for vector in rates],
            "gains": gains.tolist(),
        })  # fmt: skip
    numbers = {name: value for name, value in found.items() if name not in ("fronts", "trials", "identity")}
    write_json(folder / f"{job.key}.json", {"identity": identity, **numbers, "checkpoints": checkpoints})


def check(study: SearchStudy, folder: Path) -> None:
    """Check that every record which is there is one of this recipe; nothing is touched.

    Raises:
        RecordError: One is not.
    """
    for job in study.jobs:
        for path in (folder / f"{job.key}.json", folder / f"{job.key}.fronts.json"):
            found = json.loads(path.read_text(encoding="utf-8"))["identity"] if path.is_file() else None
            if found is not None and found != study.identity(job):
                raise RecordError(
                    f"{path}: not what {study.path.name} asks for; move it away, or keep the records of this "
                    "recipe in another folder (--runs)"
                )


def _searched(
    study: SearchStudy, job: Job, data: DataSet, folder: Path, workers: int, watch: Watch
) -> dict[str, Any]:
    """Return what a search came to; its fronts are on the disk before they are judged."""
    path = folder / f"{job.key}.fronts.json"
    if not path.is_file():
        out, fronts = folder / f"{job.key}.lut", list[Values]()

        def tell(progress: Progress) -> None:
            watch(progress.phase, (progress.step + progress.share) / progress.steps)

        about = search(
            study.recipe.network, data, out, protocol=recorded(study.protocol(job.strategy), fronts),
            seed=job.seed, workers=workers, resume=out.with_name(out.name + ".partial").exists(), watch=tell,
        ).about  # fmt: skip
        write_json(path, {
            "identity": study.identity(job),
            "fronts": [front.tolist() for front in fronts],
            # Counted, not planned: early rejection saves some.
            "trials": np.cumsum(about["questions"]).tolist(),
            "seconds": about["seconds"],
            "share_outside_training": about["share_outside_training"],
        })  # fmt: skip
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _spread(questions: int, count: int) -> list[int]:
    """Return at most `count` questions, evenly spread in the logarithm, the first and the last among them."""
    wanted = np.geomspace(1, questions, count) if count > 1 else np.array([questions])
    return sorted({round(float(number)) - 1 for number in wanted})
