"""How many filters a layer keeps: aligned counts, stochastic rounding.

Rapp et al. 2022 draw every filter by itself (`bernoulli`). Fixed counts are our decision: the work of a
mini-batch is constant, and kernels like the shapes.
"""

from __future__ import annotations

import bisect
import functools
import math
from dataclasses import dataclass

import torch


@functools.cache
def grid(channels: int, cells: int = 1) -> tuple[int, ...]:
    """Return the counts that a layer of `channels` filters may keep, ascending.

    Half the filters, the multiples of the alignment above that, and all of them; below half the grid goes on
    in multiples of the alignment down to one filter. The alignment is 8 for 16 or more filters, else 2.

    Args:
        channels: All filters of the layer.
        cells: Equal blocks that must keep the same count each (grouped convolutions); divides `channels`.
    """
    align = math.lcm(8 if channels >= 16 else 2, cells)
    half = -(-channels // (2 * cells)) * cells
    counts = {cells, half, channels, *range(align, channels, align)}
    return tuple(sorted(counts))


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept or dropped together wherever they appear: one dropout rate.

    Attributes:
        name: The first layer that writes these channels.
        channels: How many there are.
        layers: All layers and parameters that write them (a residual stream has several).
        cell_of: For every channel, the block that must keep as many channels as every other block.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    cell_of: tuple[int, ...]

    @functools.cached_property
    def cells(self) -> int:
        """Number of blocks that keep equal counts; 1 where nothing constrains the group."""
        return max(self.cell_of) + 1

    @functools.cached_property
    def grid(self) -> tuple[int, ...]:
        """Counts this group may keep."""
        return grid(self.channels, self.cells)

    def neighbours(self, rate: float) -> tuple[float, int, int]:
        """Return the expected kept count at `rate` and the grid counts around it."""
        counts = self.grid
        target = min(max((1.0 - rate) * self.channels, counts[0]), self.channels)
        # (1 - rate) * channels is meant to hit the grid where it can: rounding must not miss it by an ulp.
        if abs(target - round(target)) < 1e-6:
            target = float(round(target))
        at = bisect.bisect_left(counts, target)
        return target, counts[at] if counts[at] == target else counts[at - 1], counts[at]

    def moments(self, rate: float, *, bernoulli: bool = False) -> tuple[float, float]:
        """Return mean and variance of the kept count at `rate`."""
        if not bernoulli:
            target, low, high = self.neighbours(rate)
            return target, (target - low) * (high - target)
        # At least one is kept, which adds the probability that none would be.
        size, none = self.channels // self.cells, rate ** (self.channels // self.cells)
        mean = size * (1.0 - rate) + none
        square = size * rate * (1.0 - rate) + (size * (1.0 - rate)) ** 2 + none
        return self.cells * mean, self.cells**2 * (square - mean**2)

    def draw_count(self, rate: float, generator: torch.Generator, *, bernoulli: bool = False) -> int:
        """Draw how many channels are kept at `rate`, between one a cell and all of them."""
        if bernoulli:
            size = self.channels // self.cells
            kept = int((torch.rand(size, generator=generator, dtype=torch.float64) >= rate).sum())
            return max(1, kept) * self.cells
        target, low, high = self.neighbours(rate)
        if low == high:
            return low
        up = float(torch.rand((), generator=generator, dtype=torch.float64)) < (target - low) / (high - low)
        return high if up else low

    def draw_set(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `count` channels uniformly without replacement, the same number from every cell, sorted.

        Raises:
            ValueError: The group has no such kept set.
        """
        self._check_count(count)
        if count == self.channels:
            return torch.arange(self.channels)
        if self.cells == 1:
            return torch.randperm(self.channels, generator=generator)[:count].sort().values
        picks = []
        for members in self.members:
            order = torch.randperm(len(members), generator=generator)
            picks.append(members[order[: count // self.cells]])
        return torch.cat(picks).sort().values

    def window(self, count: int, start: int = 0) -> torch.Tensor:
        """Return `count` neighbouring channels from `start` on, wrapped around, in every cell alike, sorted.

        Raises:
            ValueError: The group has no such kept set.
        """
        self._check_count(count)
        places = (start + torch.arange(count // self.cells)) % (self.channels // self.cells)
        return torch.cat([members[places] for members in self.members]).sort().values

    @functools.cached_property
    def members(self) -> tuple[torch.Tensor, ...]:
        """The channels of every cell, ascending."""
        cell_of = torch.tensor(self.cell_of)
        return tuple((cell_of == cell).nonzero().squeeze(1) for cell in range(self.cells))

    def _check_count(self, count: int) -> None:
        if not 0 < count <= self.channels or count % self.cells:
            raise ValueError(
                f"group '{self.name}' cannot keep {count} of {self.channels} channels in {self.cells} cells"
            )
