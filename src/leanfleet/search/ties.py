"""One rate for several layers: a smaller space to search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from leanfleet.search.strategies import Ask, Space, Strategy
from leanfleet.search.trials import Values
from leanfleet.subnet.counts import ChannelGroup

_PLACE = re.compile(r"\.\d+(?=\.)")

Index = npt.NDArray[np.int64]


def ties(groups: Sequence[ChannelGroup]) -> Index:
    """Return for every group [groups] the number of its rate: one for all layers of one kind in one block.

    A block's layers differ in names by a number within: `block1.0.conv1`, `block1.1.conv1`. DenseNet-BC-40 has 9 rates
    then instead of 39.
    """
    kinds = [_PLACE.sub(".*", group.name) for group in groups]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([numbers[kind] for kind in kinds], dtype=np.int64)


def tied_space(space: Space, index: Index) -> Space:
    """Return the space of vectors [n, rates] that stand for vectors [n, groups]; a grid is that of the first group."""
    first = [int(np.flatnonzero(index == rate)[0]) for rate in range(int(index.max()) + 1)]
    grid = None if space.grid is None else tuple(space.grid[group] for group in first)
    return replace(space, groups=len(first), cost=lambda rates: space.cost(rates[:, index]), grid=grid)


class Tied:
    """A strategy in the smaller space, as one in the space of all groups.

    Args:
        strategy: Chooses vectors [n, rates].
        index: [groups] which rate each group has.
    """

    def __init__(self, strategy: Strategy, index: Index) -> None:
        self._strategy, self._index = strategy, index
        self.needs_all = strategy.needs_all

    def ask(self, trials: float) -> Ask | None:
        """See `Strategy.ask`."""
        asked = self._strategy.ask(trials)
        return None if asked is None else Ask(asked.rates[:, self._index], asked.seeds)

    def tell(self, f2: Values) -> None:
        """See `Strategy.tell`."""
        self._strategy.tell(f2)

    def front(self) -> Values:
        """See `Strategy.front`."""
        return self._strategy.front()[:, self._index]
