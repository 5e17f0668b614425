"""What to try next: NSGA-II as in the paper, or chance; `modelled` has the strategy of the fast protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from leanfleet.randomness import key, numpy_generator
from leanfleet.search.objectives import Scale, equidistant, nondominated
from leanfleet.search.trials import Values
from leanfleet.subnet.counts import ChannelGroup

HIGHEST = 0.5
"""Largest rate: those above hurt the final accuracy (Rapp et al. 2022)."""

# Of a first population that is not all drawn.
_SEEDED = 0.375

Known = Callable[[int], Values]
"""Returns at most so many vectors [n, groups] that need no search, to begin with."""


@dataclass(frozen=True)
class Space:
    """What a search chooses from, and what it knows without training.

    Attributes:
        groups: Number of rates in a vector.
        cost: Costs [n] of vectors [n, groups].
        scale: Normalises the objectives.
        grid: The rates that each group may have, ascending; any from 0 to `HIGHEST` if None.
    """

    groups: int
    cost: Callable[[Values], Values]
    scale: Scale
    grid: tuple[Values, ...] | None = None

    def f1(self, rates: Values) -> Values:
        """Return the first objective of vectors [n, groups]."""
        return self.scale.f1(self.cost(rates))

    @property
    def extremes(self) -> Values:
        """The two constant vectors, [2, groups]."""
        return np.array([[0.0] * self.groups, [HIGHEST] * self.groups])

    def snap(self, rates: Values) -> Values:
        """Return vectors [n, groups] with the nearest rates that there may be."""
        if self.grid is None:
            return rates
        columns = [
            allowed[np.abs(allowed - column[:, None]).argmin(axis=1)]
            for allowed, column in zip(self.grid, rates.T, strict=True)
        ]
        return np.stack(columns, axis=1)


def grid_rates(groups: tuple[ChannelGroup, ...]) -> tuple[Values, ...]:
    """Return the rates at which every group keeps exactly a count of its grid, from 0 to `HIGHEST`, ascending."""
    return tuple(
        np.array([1 - n / g.channels for n in reversed(g.grid) if n >= (1 - HIGHEST) * g.channels])
        for g in groups
    )


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

    needs_all: bool
    """Whether an answer that lacks a vector is no use to it."""

    def ask(self, trials: float) -> Ask | None:
        """Return what to train next, at most so many short trainings; None at the end, or if nothing fits."""

    def tell(self, f2: Values) -> None:
        """Learn the second objective [n] of what was asked last, a mean over seeds; NaN where time ran out."""

    def front(self) -> Values:
        """Return the best vectors so far, [m, groups]; the extremes if there are none."""


class Genetic:
    """NSGA-II (Deb et al. 2002) with the extremes in the first population, operators as pygmo has them by default."""

    needs_all = True

    def __init__(
        self,
        space: Space,
        *,
        population: int,
        generations: int,
        seeds: int,
        seed: int,
        known: Known | None = None,
    ) -> None:
        self._space, self._seeds = space, seeds
        self._population, self._left = population, generations + 1
        self._algorithm = _nsga2(space, _first(space, population, seed, known), generations + 1, seed)
        self._asked: Any = None

    def ask(self, trials: float) -> Ask | None:
        """Return the next generation."""
        if self._left == 0 or trials < self._population * self._seeds:
            return None
        self._asked = self._algorithm.ask()
        if self._asked is None:
            # All vectors of a small grid have been tried.
            self._left = 0
            return None
        return Ask(self._asked.get("X").astype(np.float64), self._seeds)

    def tell(self, f2: Values) -> None:
        """Let the fittest survive."""
        self._asked.set("F", np.stack([self._space.f1(self._asked.get("X")), f2], axis=1))
        self._algorithm.tell(infills=self._asked)
        self._left -= 1

    def front(self) -> Values:
        """Return the population's vectors that no other one beats."""
        survivors = self._algorithm.pop
        if survivors is None or len(survivors) == 0:
            return self._space.extremes
        f1, f2 = survivors.get("F").T
        found: Values = survivors.get("X")[nondominated(f1, f2)]
        return found


class Chance:
    """Random vectors, the extremes first: what any search has to beat."""

    needs_all = False

    def __init__(
        self,
        space: Space,
        *,
        population: int,
        generations: int,
        seeds: int,
        seed: int,
        known: Known | None = None,
    ) -> None:
        self._space, self._seeds, self._seed = space, seeds, seed
        self._population, self._generations, self._known = population, generations + 1, known
        self._told: list[tuple[Values, Values]] = []
        self._asked: Values = space.extremes[:0]

    def ask(self, trials: float) -> Ask | None:
        """Return as many vectors as a generation of `Genetic` has."""
        done = len(self._told)
        if done == self._generations or trials < self._population * self._seeds:
            return None
        if done == 0:
            self._asked = _first(self._space, self._population, self._seed, self._known)
        else:
            generator = numpy_generator(self._seed, done, "search chance")
            drawn = generator.uniform(0, HIGHEST, (self._population, self._space.groups))
            self._asked = self._space.snap(drawn)
        return Ask(self._asked, self._seeds)

    def tell(self, f2: Values) -> None:
        """Remember."""
        known = ~np.isnan(f2)
        self._told.append((self._asked[known], f2[known]))

    def front(self) -> Values:
        """Return the vectors that no other one beats, at most as many as a generation has."""
        if not self._told:
            return self._space.extremes
        rates, f2 = (np.concatenate(part) for part in zip(*self._told, strict=True))
        f1 = self._space.f1(rates)
        best = nondominated(f1, f2)
        found: Values = rates[best][equidistant(f1[best], self._population)]
        return found


def typical(space: Space, count: int) -> Values:
    """Return vectors [n <= count, groups] that anybody would try: one rate for all layers, rates rising and falling.

    Rising and falling with depth; a third of each.
    """
    levels = np.linspace(0, HIGHEST, max(1, count // 3) + 2)[1:-1, None]
    depth = np.linspace(0, 1, space.groups)[None, :]
    rising = np.minimum(2 * levels * depth, HIGHEST)
    return space.snap(np.concatenate([levels * np.ones_like(depth), rising, rising[:, ::-1]]))


def _first(space: Space, population: int, seed: int, known: Known | None) -> Values:
    begun = [space.extremes]
    if known is not None:
        begun.append(known(max(3, int(_SEEDED * population))))
    count = population - sum(map(len, begun))
    drawn = numpy_generator(seed, "first population").uniform(0, HIGHEST, (count, space.groups))
    return np.concatenate([*begun, space.snap(drawn)])


def _nsga2(space: Space, first: Values, generations: int, seed: int) -> Any:
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM

    class Snap(Repair):  # type: ignore[misc]
        def _do(self, problem: Any, values: Values, **kwargs: Any) -> Values:
            return space.snap(values)

    algorithm = NSGA2(
        pop_size=len(first),
        sampling=first,
        crossover=SBX(prob=0.95, eta=10),
        mutation=PM(prob=1.0, eta=50, prob_var=0.01),
        **({} if space.grid is None else {"repair": Snap()}),
    )
    problem = Problem(n_var=space.groups, n_obj=2, xl=0.0, xu=HIGHEST)
    algorithm.setup(
        problem, termination=("n_gen", generations), seed=key(seed, "nsga2") % 2**31, verbose=False
    )
    return algorithm
