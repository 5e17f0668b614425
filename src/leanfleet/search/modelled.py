"""The strategy of the fast protocol: a fitted model of the second objective instead of most short trainings."""

from __future__ import annotations

import math

import numpy as np

from leanfleet.randomness import numpy_generator
from leanfleet.search.objectives import equidistant, nondominated
from leanfleet.search.strategies import HIGHEST, Ask, Known, Space
from leanfleet.search.surrogate import Additive
from leanfleet.search.trials import Values

# A budget that grows by less is no reason for another look at random vectors.
_WORTH = 0.25
# A model of less would be its prior.
_FEWEST_DRAWN = 12
_FEWEST = 4
# Vectors that a descent passes: a few times those of a table.
_PASSED, _FEWEST_LEVELS = 256, 2
# Of the design, where it is not all drawn.
_SEEDED = 3 / 16


class Modelled:
    """Trains a random design, fits an additive model of the second objective, then trains and refits its front.

    The first objective is free, so only the second needs a model (our decision): one curve a layer, see `Additive`.
    What time allows is split between design and refits as the sizes say.

    Args:
        space: What to choose from.
        population: Vectors of the front.
        design: Random vectors at the start, one short training each.
        refits: How often the model's front is trained, and how many vectors of it.
        seeds: Short trainings of each of those.
        seed: Everything random.
        known: What the design begins with; it is all drawn if None.
    """

    needs_all = False

    def __init__(
        self, space: Space, *, population: int, design: int, refits: tuple[int, ...], seeds: int, seed: int,
        known: Known | None = None,
    ) -> None:  # fmt: skip
        self._space, self._population = space, population
        self._seeds, self._refits = seeds, refits
        self._design = _design(space, design, seed, known)
        self._drawn = self._refitted = self._rounds = self._done = 0
        self._rates, self._f2, self._weights = space.extremes[:0], np.empty(0), np.empty(0)
        self._asked = Ask(self._rates, 1)
        self._found: Values | None = None

    def ask(self, trials: float) -> Ask | None:
        """Return a part of the design, then points of the model's front."""
        share = min(1.0, (self._done + trials) / (len(self._design) + self._seeds * sum(self._refits)))
        new = int(min(max(len(self._design) * share, _FEWEST_DRAWN) - self._drawn, trials))
        if new > _WORTH * self._drawn and self._drawn + new >= _FEWEST_DRAWN:
            self._asked = Ask(self._design[self._drawn : self._drawn + new], 1)
            self._drawn += new
            return self._asked
        size = self._refits[min(self._rounds, len(self._refits) - 1)] if self._refits else 0
        left = sum(self._refits) * share - self._refitted
        count = int(min(math.ceil(size * share), left, trials / self._seeds))
        if count < _FEWEST or not self._drawn:
            return None
        front = self.front()
        self._asked = Ask(front[equidistant(self._space.f1(front), count)], self._seeds)
        self._refitted += count
        self._rounds += 1
        return self._asked

    def tell(self, f2: Values) -> None:
        """Remember; the model is fitted when it is asked for."""
        rates, seeds = self._asked.rates, self._asked.seeds
        known = ~np.isnan(f2)
        self._rates = np.concatenate([self._rates, rates[known]])
        self._f2 = np.concatenate([self._f2, f2[known]])
        self._weights = np.concatenate([self._weights, np.full(int(known.sum()), float(seeds))])
        self._done += len(rates) * seeds
        self._found = None

    def front(self) -> Values:
        """Return the model's front, spread evenly in cost."""
        if len(self._f2) == 0:
            return self._space.extremes
        if self._found is None:
            model = Additive.fit(self._rates, self._f2, self._weights, HIGHEST)
            passed = np.unique(np.concatenate([descent(self._space, model), self._space.extremes]), axis=0)
            best = passed[nondominated(self._space.f1(passed), model(passed))]
            self._found = best[equidistant(self._space.f1(best), self._population)]
        return self._found


def careful(sensitivity: Values, space: Space, count: int) -> Values:
    """Return vectors [n <= count, groups] that drop most where that harms least for what it saves.

    Args:
        sensitivity: [groups] what dropping half of a layer alone costs; that rates cost their square is our guess.
        space: What to choose from.
        count: How many at most.
    """
    model = Additive(np.zeros(space.groups), sensitivity / HIGHEST**2)
    passed = descent(space, model)[1:-1]
    return passed[equidistant(space.f1(passed), count)]


def descent(space: Space, model: Additive) -> Values:
    """Return vectors from no dropout down to the most, always the step next that saves most for what it loses.

    Rates only rise on the way. With rising curves that add up this is next to the best there is: NSGA-II on the same
    model finds no more.

    Returns:
        [steps + 1, groups].
    """
    levels = _levels(space)
    at = np.zeros(space.groups, dtype=np.int64)
    now = np.array([rates[0] for rates in levels])
    passed = [now]
    last = np.array([len(rates) - 1 for rates in levels])
    while len(open_ := np.flatnonzero(at < last)):
        steps = np.repeat(now[None], len(open_), axis=0)
        steps[np.arange(len(open_)), open_] = [levels[group][at[group] + 1] for group in open_]
        saved = space.f1(now[None]) - space.f1(steps)
        lost = model(steps) - model(now[None])
        best = int(np.argmax(saved / np.maximum(lost, 1e-9)))
        now = steps[best]
        at[open_[best]] += 1
        passed.append(now)
    return np.array(passed)


def _levels(space: Space) -> tuple[Values, ...]:
    if space.grid is not None:
        return space.grid
    count = max(_FEWEST_LEVELS, math.ceil(_PASSED / space.groups))
    return (np.linspace(0, HIGHEST, count + 1),) * space.groups


def _design(space: Space, count: int, seed: int, known: Known | None) -> Values:
    """Return random vectors whose costs cover the whole range: independent rates alone would all cost the same.

    The first n of a larger design are the design of n: a search that gets more time goes on with it.
    """
    drawn = numpy_generator(seed, "design").uniform(0, HIGHEST, (count, 1 + space.groups))
    found = np.clip(drawn[:, :1] + drawn[:, 1:] - HIGHEST / 2, 0, HIGHEST)
    if known is not None:
        begun = known(max(3, int(_SEEDED * count)))
        found = np.concatenate([begun, found])[:count]
    return space.snap(found)
