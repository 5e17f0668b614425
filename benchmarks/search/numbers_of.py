"""What the records of a study come to: hypervolumes, accuracy at fixed MACs, how noisy the objective is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from settings import NOISE, Job, SearchStudy
from variants import UNIFORM

from leanfleet.search import Scale, hypervolume
from leanfleet.search.objectives import nondominated
from leanfleet.search.trials import Values

SHARES = (0.25, 0.4, 0.55, 0.7, 0.85)
"""MACs at which fronts are compared, of the whole network's."""
_GRID = 9
_MEASURES = ("accuracy", "loss")


@dataclass(frozen=True)
class Front:
    """Vectors that were judged with fresh seeds, those that no other one beats, by ascending cost.

    Attributes:
        macs: [n] shares of the whole network's MACs.
        f1: [n] the paper's first objective.
        f2: [n] its second, mean over fresh seeds.
        error: [n] standard error of that.
        accuracy: [n] gain in accuracy of a short training, a fraction.
    """

    macs: Values
    f1: Values
    f2: Values
    error: Values
    accuracy: Values

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> Front:
        """Return the front of a record's checkpoint; its first two vectors are no dropout and half of everything."""
        macs, gains = np.array(checkpoint["macs"]), np.array(checkpoint["gains"])[:, :, 0]
        mean = gains.mean(axis=1)
        scale = Scale((macs[0], macs[1]), (mean[0], mean[1]))
        f1, f2 = scale.f1(macs), scale.f2(gains, gains[0])
        error = f2.std(axis=1, ddof=1) / np.sqrt(f2.shape[1])
        best = np.flatnonzero(nondominated(f1, f2.mean(axis=1)))
        best = best[np.argsort(f1[best], kind="stable")]
        return cls(macs[best] / macs[0], f1[best], f2[best].mean(axis=1), error[best], mean[best])

    @property
    def hypervolume(self) -> float:
        """Return the area it dominates."""
        return hypervolume(self.f1, self.f2)

    def at(self, share: float) -> float | None:
        """Return the gain in accuracy at a share of all MACs, between two vectors by a straight line.

        Above the dearest vector it is that one's: what costs more is worse. None below the cheapest.
        """
        if share < float(self.macs[0]):
            return None
        return float(np.interp(share, self.macs, self.accuracy))

    def curve(self) -> tuple[Values, Values]:
        """Return the second objective at costs that are the same for all fronts of a network."""
        grid = np.linspace(0, 1, _GRID)
        return grid, np.interp(grid, self.f1, self.f2)


@dataclass(frozen=True)
class Found:
    """One finished search.

    Attributes:
        job: Which.
        record: Its file's content.
        samples: Training samples at its checkpoints; neither the anchors nor the judging are counted.
        fronts: Its fronts there, the final one last.
    """

    job: Job
    record: dict[str, Any]
    samples: tuple[int, ...]
    fronts: tuple[Front, ...]

    @property
    def outside(self) -> float | None:
        """Share of a generation's time that is not spent on short trainings; None for one that was not searched."""
        found: float | None = self.record.get("share_outside_training")
        return found

    def samples_to(self, hypervolume: float) -> int | None:
        """Return the samples at the first checkpoint with at least this hypervolume."""
        pairs = zip(self.samples, self.fronts, strict=True)
        return next((samples for samples, front in pairs if front.hypervolume >= hypervolume), None)


def read(study: SearchStudy, folder: Path) -> tuple[dict[str, list[Found]], dict[int, dict[str, float]]]:
    """Return what is finished: searches by strategy, and how noisy the objective is by seed."""
    searches: dict[str, list[Found]] = {}
    noises: dict[int, dict[str, float]] = {}
    for job in study.jobs:
        path = folder / f"{job.key}.json"
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        checkpoints = record["checkpoints"]
        if job.strategy == NOISE:
            gains, full = np.array(checkpoints[0]["gains"]), np.array(record["full_gains"])
            noises[job.seed] = noise(gains) | agreement(gains, full)
            continue
        fronts = tuple(Front.of(checkpoint) for checkpoint in checkpoints)
        samples = tuple(int(checkpoint["samples"]) for checkpoint in checkpoints)
        searches.setdefault(job.strategy, []).append(Found(job, record, samples, fronts))
    return searches, noises


def final(searches: dict[str, list[Found]], strategy: str, seed: int) -> Front | None:
    """Return the last front of a search, or None where it is not finished."""
    return next((f.fronts[-1] for f in searches.get(strategy, []) if f.job.seed == seed), None)


def advantage(searches: dict[str, list[Found]], found: Found) -> list[float | None]:
    """Return what a front gains over the uniform line of the same seed at `SHARES`, in accuracy."""
    line = final(searches, UNIFORM, found.job.seed)
    pairs = [(found.fronts[-1].at(share), None if line is None else line.at(share)) for share in SHARES]
    return [None if mine is None or other is None else mine - other for mine, other in pairs]


def agreement(gains: Values, full: Values) -> dict[str, float]:
    """Return how well small short trainings stand for those of full size, from gains as `noise` takes them.

    Returns:
        `agrees_accuracy`, `agrees_loss`: rank correlation of both measures of the small ones with the accuracy of the
        full ones, means over all seeds. And `noise` of the full ones, as `full_...`.
    """
    from scipy.stats import spearmanr

    small, large = (_f2(of).mean(axis=1) for of in (gains, full))
    ranks = {
        f"agrees_{name}": float(spearmanr(small[:, number], large[:, 0]).statistic)
        for number, name in enumerate(_MEASURES)
    }
    return ranks | {f"full_{name}": value for name, value in noise(full).items()}


def _f2(gains: Values) -> Values:
    """Return the second objective [vectors, seeds, 2] of all but the two extremes, every seed against no dropout's."""
    means = gains.mean(axis=1)
    return np.asarray((gains[0] - gains[2:]) / (means[0] - means[1]))


def noise(gains: Values) -> dict[str, float]:
    """Return how noisy the second objective is, from gains [2 + vectors, seeds, 2] after the two extremes.

    Returns:
        `rank_loss_accuracy`: rank correlation of both measures, means over all seeds. `predicts_accuracy`,
        `predicts_loss`: of one seed with the accuracy of all the others. For both measures, `common_` and
        `independent_`: variance of the difference of two vectors, with and without common random numbers.
    """
    from scipy.stats import spearmanr

    means, f2 = gains.mean(axis=1), _f2(gains)
    seeds = range(f2.shape[1])
    mean = f2.mean(axis=1)
    found = {"rank_loss_accuracy": float(spearmanr(mean[:, 0], mean[:, 1]).statistic)}
    for number, name in enumerate(_MEASURES):
        one = f2[:, :, number]
        others = [np.delete(f2[:, :, 0], seed, axis=1).mean(axis=1) for seed in seeds]
        ranks = [spearmanr(one[:, seed], others[seed]).statistic for seed in seeds]
        found[f"predicts_{name}"] = float(np.mean(ranks))
        # One vector and the next: with the same seeds, and as if each had seeds of its own.
        plain = -one + gains[0, :, number] / (means[0] - means[1])[number]
        variance = plain.var(axis=1, ddof=1)
        found[f"common_{name}"] = float((plain[1:] - plain[:-1]).var(axis=1, ddof=1).mean())
        found[f"independent_{name}"] = float((variance[1:] + variance[:-1]).mean())
    return found
