"""A data set in memory: the images once, as uint8; everything else refers to them by index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanfleet.errors import DataError
from leanfleet.randomness import numpy_generator

_CHUNK = 4096  # images looked at together: the histograms never need a second copy of the whole set


@dataclass(frozen=True, eq=False)
class Split:
    """The train or the test half of a data set.

    Attributes:
        images: uint8 `[N, C, H, W]`. Sets loaded by us lie in memory as `[N, H, W, C]` (channels_last), so that a
            mini-batch is channels_last without a copy; any other layout is correct, only slower.
        labels: int64 `[N]`, the class of each image.
        writers: int64 `[N]`, who wrote each image, or None where the set does not say. Numbers are comparable
            between the train and the test split of one set.

    Raises:
        DataError: If the tensors are not of these types, or differ in length.
    """

    images: Tensor
    labels: Tensor
    writers: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"images must be uint8 [N, C, H, W], not {self.images.dtype} {list(self.images.shape)}"
            )
        for name, column in (("labels", self.labels), ("writers", self.writers)):
            if column is not None and (column.dtype != torch.int64 or column.shape != self.images.shape[:1]):
                raise DataError(
                    f"{name} must be int64 [{len(self)}], not {column.dtype} {list(column.shape)}"
                )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def select(self, rows: Tensor) -> Split:
        """Return a copy of some rows (int64 `[M]`) as a split of its own."""
        images = self.images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
        return Split(images, self.labels[rows], None if self.writers is None else self.writers[rows])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A train and a test split with their classes and the channel statistics of the train images.

    Attributes:
        name: What the set is called in tables and messages.
        train: What is dealt to the devices.
        test: What the server evaluates on.
        classes: Names of the classes; label `i` is `classes[i]`.
        mean: Mean of each channel over the train images, on the [0, 1] scale.
        std: Population standard deviation of each channel, on the [0, 1] scale.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name: str, train: Split, test: Split, classes: tuple[str, ...]) -> DataSet:
        """Build a set from its two halves, check them against each other and compute the channel statistics.

        Raises:
            DataError: If a half is empty, the image shapes differ, or a label is not the index of a class.
        """
        for half, split in (("train", train), ("test", test)):
            if not len(split):
                raise DataError(
                    f"{name}: the {half} split is empty; at least one image is needed in each split"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(classes):
                raise DataError(
                    f"{name}: the {half} labels run from {low} to {high}, outside the range 0 to {len(classes) - 1} "
                    f"of its {len(classes)} classes; drop or relabel those rows"
                )
        if train.images.shape[1:] != test.images.shape[1:]:
            shapes = " but ".join("x".join(map(str, split.images.shape[1:])) for split in (train, test))
            raise DataError(f"{name}: train images are {shapes} in the test split; bring both to one shape")
        mean, std = channel_stats(train.images)
        return cls(name, train, test, classes, mean, std)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape `(C, H, W)` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def share_memory_(self) -> DataSet:
        """Move all tensors to shared memory, so that spawned workers see them without a copy; return self."""
        for split in (self.train, self.test):
            for tensor in (split.images, split.labels, split.writers):
                if tensor is not None:
                    tensor.share_memory_()  # type: ignore[no-untyped-call]
        return self


def channel_stats(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation of each channel of uint8 `[N, C, H, W]`, on the [0, 1] scale.

    They come from exact histograms of the 256 grey levels, so that no float copy of the images is made. A constant
    channel gets the deviation 1, so that it normalises to zero instead of to NaN (our decision).
    """
    counts = torch.stack([_histogram(images[:, channel]) for channel in range(images.shape[1])]).double()
    shares = counts / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(value if value > 0 else 1.0 for value in std.tolist())


def split_80_20(split: Split, groups: Tensor) -> tuple[Split, Split]:
    """Split into train (80 %) and test (20 %) with a fixed seed, every group in the same proportion.

    All rows are shuffled, ordered by group, and every fifth goes to the test split: the total is 20 %, and so is
    every group to within one sample.

    Args:
        split: What to divide.
        groups: int64 `[N]`, the labels or the writers.
    """
    shuffled = torch.from_numpy(numpy_generator("train and test").permutation(len(split)))
    ordered = shuffled[groups[shuffled].argsort(stable=True)]
    test = torch.arange(len(split)) % 5 == 4
    return split.select(ordered[~test].sort().values), split.select(ordered[test].sort().values)


def _histogram(plane: Tensor) -> Tensor:
    """Count the 256 grey levels of uint8 `[N, H, W]`."""
    counts = torch.zeros(256, dtype=torch.int64)
    for chunk in torch.split(plane, _CHUNK):
        counts += torch.bincount(chunk.reshape(-1), minlength=256)
    return counts
