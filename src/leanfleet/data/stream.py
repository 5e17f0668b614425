"""A client's samples as an endless row of mini-batches, of which any can be had by its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from leanfleet.data.batches import Augment, Batch, Normalise, crop_flip, take
from leanfleet.data.dataset import Split
from leanfleet.randomness import torch_generator


@dataclass(frozen=True, eq=False)
class Stream:
    """Epoch after epoch, each shuffled anew, cut into mini-batches of equal size that may reach into the next epoch.

    Batches are those of `Batches`; as each depends on its number alone, a resumed run goes on with the same ones.

    Attributes:
        split: Where the images are.
        indices: int64 `[N]`, the rows that the client holds.
        batch_size: Samples of a mini-batch; small sets are gone through several times for one.
        mean: Mean of each channel, on the [0, 1] scale.
        std: Standard deviation of each channel, on the [0, 1] scale.
        stream: Names the random stream.
        augment: See `Batches`.
        device: Where the batches go.
    """

    split: Split
    indices: Tensor
    _: KW_ONLY
    batch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    stream: tuple[int | str, ...]
    augment: Augment = "none"
    device: torch.device | str = "cpu"
    _orders: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def batch(self, number: int) -> Batch:
        """Return mini-batch `number`, counted from 0."""
        count = len(self.indices)
        places = torch.arange(number * self.batch_size, (number + 1) * self.batch_size)
        epochs = places // count
        rows = torch.cat(
            [self._order(e)[places[epochs == e] % count] for e in range(int(epochs[0]), int(epochs[-1]) + 1)]
        )
        pixels, labels = take(self.split, rows)
        if self.augment == "crop-flip":
            pixels = crop_flip(pixels, torch_generator(*self.stream, "augment", number))
        return self._normalise(pixels), labels.to(self.device)

    @cached_property
    def _normalise(self) -> Normalise:
        return Normalise.of(self.split, self.mean, self.std, self.device)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            generator = torch_generator(*self.stream, "order", epoch)
            self._orders[epoch] = self.indices[torch.randperm(len(self.indices), generator=generator)]
        return self._orders[epoch]
