"""Kept sets without replacement: within a round, no channel comes twice before all have come once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanfleet.subnet.kept import Kept
from leanfleet.subnet.plan import SubnetPlan


class Cycle:
    """Walks through a random permutation of every group's channels, reshuffled when it is used up.

    Coverage within a round is as even as it can be (our decision; rolling sub-models beat random ones in FedRolex).

    Args:
        plan: The network.
        generator: The mask stream of one device and round.
    """

    def __init__(self, plan: SubnetPlan, generator: torch.Generator) -> None:
        self._plan, self._generator = plan, generator
        self._left: dict[tuple[str, int], Tensor] = {}

    def draw(self, rates: Sequence[float], *, bernoulli: bool = False) -> Kept:
        """Return the next kept sets, at dropout rates as `SubnetPlan.draw` takes them."""
        counts = self._plan.round_counts(rates, self._generator, bernoulli=bernoulli)
        sets = {}
        for group, count in zip(self._plan.groups, counts, strict=True):
            each = count // group.cells
            cells = enumerate(group.members)
            picks = [self._next((group.name, cell), members, each) for cell, members in cells]
            sets[group.name] = torch.cat(picks).sort().values
        return self._plan.keep(sets)

    def _next(self, place: tuple[str, int], members: Tensor, count: int) -> Tensor:
        left = self._left.get(place, members[:0])
        taken, left = left[:count], left[count:]
        if len(taken) < count:
            fresh = members[torch.randperm(len(members), generator=self._generator)]
            more = fresh[~torch.isin(fresh, taken)][: count - len(taken)]
            taken, left = torch.cat([taken, more]), fresh[~torch.isin(fresh, more)]
        self._left[place] = left
        return taken
