"""The kept channels of one mini-batch, seen from every place in the network that needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from leanfleet.subnet.units import Ids, Resolved


class Kept(Mapping[str, Tensor]):
    """`{group: sorted LongTensor of kept channels}` with the derived positions and scales, computed once.

    Made by `SubnetPlan.draw`, `SubnetPlan.keep` and `SubnetPlan.full`; not by hand.
    """

    def __init__(
        self, sets: Mapping[str, Tensor], layouts: Layouts, within: Mapping[str, Tensor] | None = None
    ) -> None:
        self._sets = {group.name: sets[group.name] for group in layouts.resolved.groups}
        self._layouts = layouts
        self._ids: dict[tuple[int, str], Tensor | None] = {}
        counts = torch.tensor([len(ids) for ids in self._sets.values()], dtype=torch.int64)
        self.full = torch.equal(counts, layouts.channels)
        """Whether every channel of every group is kept."""
        if self.full:
            return
        # The last slot is that of everything which is never dropped.
        self._mask = torch.zeros(layouts.resolved.total + 1, dtype=torch.bool)
        self._mask[-1] = True
        self._mask[torch.cat(list(self._sets.values())) + layouts.offsets.repeat_interleave(counts)] = True
        self._scale = torch.ones(layouts.resolved.total + 1, dtype=torch.float64)
        wholes = layouts.channels if within is None else torch.tensor([len(within[n]) for n in self._sets])
        factors = wholes / counts.double()
        self._scale[:-1] = factors.repeat_interleave(layouts.channels)

    def __getitem__(self, name: str) -> Tensor:
        return self._sets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def __repr__(self) -> str:
        kept = ", ".join(f"{g.name}: {len(self[g.name])}/{g.channels}" for g in self._layouts.resolved.groups)
        return f"Kept({kept})"

    def ids(self, layout: int, device: torch.device | str = "cpu") -> Tensor | None:
        """Return the kept positions of a layout, ascending; None where all are kept."""
        if self.full:
            return None
        place = (layout, str(device))
        if place not in self._ids:
            mask = self._mask[self._layouts.slots[layout]]
            ids = None if bool(mask.all()) else mask.nonzero().squeeze(1).to(device)
            self._ids[place] = ids
        return self._ids[place]

    def count(self, layout: int) -> int:
        """Return how many positions of a layout are kept."""
        ids = self.ids(layout)
        return len(self._layouts.slots[layout]) if ids is None else len(ids)

    def scale(self, layout: int) -> Tensor | None:
        """Return C/n of the source of every kept position (float64); None where nothing is dropped."""
        ids = self.ids(layout)
        return None if ids is None else self._scale[self._layouts.slots[layout][ids]]


class Layouts:
    """The channel layouts a network uses, by number, and how its groups resolved."""

    def __init__(self, units: list[Ids], resolved: Resolved) -> None:
        self.resolved = resolved
        self.channels = torch.tensor([group.channels for group in resolved.groups], dtype=torch.int64)
        self.offsets = torch.tensor(resolved.offsets, dtype=torch.int64)
        self.slots = [torch.from_numpy(resolved.slots(u)) for u in units]

    def counts_by_group(self, layout: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return float64 [groups + 1]: positions per kept channel of each group; last, the fixed positions."""
        bounds = np.array([*self.resolved.offsets, self.resolved.total])
        owner = np.searchsorted(bounds, self.slots[layout].numpy(), side="right") - 1
        counts = np.bincount(owner, minlength=len(bounds)).astype(np.float64)
        sizes = np.array([*self.channels.tolist(), 1.0])
        per_channel: np.ndarray[tuple[int], np.dtype[np.float64]] = counts / sizes
        return per_channel
