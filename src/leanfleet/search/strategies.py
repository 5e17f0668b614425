"""What to try next: NSGA-II as in the paper, a fitted model instead of most short trainings, or chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from leanfleet.randomness import key, numpy_generator
from leanfleet.search.objectives import Scale, equidistant, nondominated
from leanfleet.search.surrogate import Additive
from leanfleet.search.trials import Values

HIGHEST = 0.5
"""Largest rate: those above hurt the final accuracy (Rapp et al. 2022)."""


@dataclass(frozen=True)
class Space:
    """What a search chooses from, and what it knows without training.

    Attributes:
        groups: Number of rates in a vector.
        cost: Costs [n] of vectors [n, groups].
        scale: Normalises the objectives.
    """

    groups: int
    cost: Callable[[Values], Values]
    scale: Scale

    def f1(self, rates: Values) -> Values:
        """Return the first objective of vectors [n, groups]."""
        return self.scale.f1(self.cost(rates))

    @property
    def extremes(self) -> Values:
        """The two constant vectors, [2, groups]."""
        return np.array([[0.0] * self.groups, [HIGHEST] * self.groups])


@dataclass(frozen=True)
class Ask:
    """Vectors to train, and with how many seeds each.

    Attributes:
        rates: float64 [n, groups].
        seeds: Short trainings of each.
    """

    rates: Values
    seeds: int


class Strategy(Protocol):
    """Asks for vectors and is told what they lose: the same questions in the same order for the same answers."""

    def ask(self) -> Ask | None:
        """Return what to train next; None at the end."""

    def tell(self, f2: Values) -> None:
        """Learn the second objective [n] of what was asked last, a mean over seeds."""

    def front(self) -> Values:
        """Return the best vectors so far, [m, groups]."""


class Genetic:
    """NSGA-II (Deb et al. 2002) with the extremes in the first population, operators as pygmo has them by default."""

    def __init__(self, space: Space, *, population: int, generations: int, seeds: int, seed: int) -> None:
        self._space, self._seeds = space, seeds
        self._left = generations + 1
        self._algorithm = _nsga2(space, _first(space, population, seed), population, generations + 1, seed)
        self._asked: Any = None

    def ask(self) -> Ask | None:
        """Return the next generation."""
        if self._left == 0:
            return None
        self._asked = self._algorithm.ask()
        return Ask(self._asked.get("X").astype(np.float64), self._seeds)

    def tell(self, f2: Values) -> None:
        """Let the fittest survive."""
        self._asked.set("F", np.stack([self._space.f1(self._asked.get("X")), f2], axis=1))
        self._algorithm.tell(infills=self._asked)
        self._left -= 1

    def front(self) -> Values:
        """Return the population's vectors that no other one beats."""
        survivors = self._algorithm.pop
        f1, f2 = survivors.get("F").T
        found: Values = survivors.get("X")[nondominated(f1, f2)]
        return found


class Chance:
    """Random vectors, the extremes first: what any search has to beat."""

    def __init__(self, space: Space, *, population: int, generations: int, seeds: int, seed: int) -> None:
        self._space, self._seeds, self._seed = space, seeds, seed
        self._population, self._generations = population, generations + 1
        self._told: list[tuple[Values, Values]] = []
        self._asked: Values = space.extremes[:0]

    def ask(self) -> Ask | None:
        """Return as many vectors as a generation of `Genetic` has."""
        done = len(self._told)
        if done == self._generations:
            return None
        drawn = numpy_generator(self._seed, done, "search chance").uniform(
            0, HIGHEST, (self._population, self._space.groups)
        )
        self._asked = np.concatenate([self._space.extremes, drawn[2:]]) if done == 0 else drawn
        return Ask(self._asked, self._seeds)

    def tell(self, f2: Values) -> None:
        """Remember."""
        self._told.append((self._asked, f2))

    def front(self) -> Values:
        """Return the vectors that no other one beats, at most as many as a generation has."""
        rates, f2 = (np.concatenate(part) for part in zip(*self._told, strict=True))
        f1 = self._space.f1(rates)
        best = nondominated(f1, f2)
        found: Values = rates[best][equidistant(f1[best], self._population)]
        return found


class Modelled:
    """Trains a random design, fits an additive model of the second objective, then trains and refits its front.

    The first objective is free, so only the second needs a model (our decision): one curve a layer, see `Additive`.

    Args:
        space: What to choose from.
        population: Vectors of the front.
        design: Random vectors at the start, one short training each.
        refits: How often the model's front is trained, and how many vectors of it.
        seeds: Short trainings of each of those.
        seed: Everything random.
    """

    def __init__(
        self, space: Space, *, population: int, design: int, refits: tuple[int, ...], seeds: int, seed: int
    ) -> None:
        self._space, self._population, self._seed = space, population, seed
        self._seeds, self._refits = seeds, refits
        self._rates = _design(space, design, seed)
        self._f2: Values = np.empty(0)
        self._weights: Values = np.empty(0)
        self._round = 0

    def ask(self) -> Ask | None:
        """Return the design, then points of the model's front."""
        if self._round == 0:
            return Ask(self._rates, 1)
        if self._round > len(self._refits):
            return None
        front = self.front()
        self._asked = front[equidistant(self._space.f1(front), self._refits[self._round - 1])]
        self._rates = np.concatenate([self._rates, self._asked])
        return Ask(self._asked, self._seeds)

    def tell(self, f2: Values) -> None:
        """Remember; the model is fitted when it is asked for."""
        seeds = 1 if self._round == 0 else self._seeds
        self._f2 = np.concatenate([self._f2, f2])
        self._weights = np.concatenate([self._weights, np.full(len(f2), float(seeds))])
        self._round += 1

    def front(self) -> Values:
        """Return the model's front, spread evenly in cost, the extremes among it."""
        told = len(self._f2)
        model = Additive.fit(self._rates[:told], self._f2, self._weights, HIGHEST)
        algorithm = _nsga2(
            self._space,
            _first(self._space, _MODEL_POPULATION, self._seed),
            _MODEL_POPULATION,
            _MODEL_GENERATIONS,
            self._seed,
        )
        for _ in range(_MODEL_GENERATIONS):
            asked = algorithm.ask()
            rates = asked.get("X").astype(np.float64)
            asked.set("F", np.stack([self._space.f1(rates), model(rates)], axis=1))
            algorithm.tell(infills=asked)
        found = np.concatenate([self._space.extremes, algorithm.pop.get("X")])
        f1, f2 = self._space.f1(found), model(found)
        best = found[nondominated(f1, f2)]
        return best[equidistant(self._space.f1(best), self._population)]


_MODEL_POPULATION, _MODEL_GENERATIONS = 128, 150


def _first(space: Space, population: int, seed: int) -> Values:
    drawn = numpy_generator(seed, "first population").uniform(0, HIGHEST, (population - 2, space.groups))
    return np.concatenate([space.extremes, drawn])


def _design(space: Space, count: int, seed: int) -> Values:
    """Return random vectors whose costs cover the whole range: independent rates alone would all cost the same."""
    generator = numpy_generator(seed, "design")
    level = generator.uniform(0, HIGHEST, (count, 1))
    spread = generator.uniform(-HIGHEST / 2, HIGHEST / 2, (count, space.groups))
    return np.clip(level + spread, 0, HIGHEST)


def _nsga2(space: Space, first: Values, population: int, generations: int, seed: int) -> Any:
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM

    algorithm = NSGA2(
        pop_size=population,
        sampling=first,
        crossover=SBX(prob=0.95, eta=10),
        mutation=PM(prob=1.0, eta=50, prob_var=0.01),
    )
    problem = Problem(n_var=space.groups, n_obj=2, xl=0.0, xu=HIGHEST)
    algorithm.setup(
        problem, termination=("n_gen", generations), seed=key(seed, "nsga2") % 2**31, verbose=False
    )
    return algorithm
