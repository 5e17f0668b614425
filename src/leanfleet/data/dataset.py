"""A data set in memory: the images once, as uint8; everything else refers to them by index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanfleet.errors import DataError
from leanfleet.randomness import numpy_generator

Stats = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, on the [0, 1] scale."""

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
    """A train, a test and perhaps a validation split with their classes and channel statistics.

    Attributes:
        name: What the set is called in tables and messages.
        train: What is dealt to the devices.
        test: What the server evaluates on.
        classes: Names of the classes; label `i` is `classes[i]`.
        mean: Mean of each channel over the train images, on the [0, 1] scale.
        std: Population standard deviation of each channel, on the [0, 1] scale.
        validation: What choices are made on, where the set keeps images for that.
        writer_stats: Mean and deviation for the images of each writer, where they differ between writers.
        note: What a report should say about the data, such as what stands in for what; else empty.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: Split | None = None
    writer_stats: tuple[Stats, ...] | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        train: Split,
        test: Split,
        classes: tuple[str, ...],
        *,
        validation: Split | None = None,
        writer_stats: tuple[Stats, ...] | None = None,
        note: str = "",
    ) -> DataSet:
        """Build a set from its splits, check them against each other and compute the channel statistics.

        Raises:
            DataError: If a split is empty, the image shapes differ, a label is not the index of a class, or a writer
                has no statistics though there are `writer_stats`.
        """
        splits = {"train": train, "test": test}
        if validation is not None:
            splits["validation"] = validation
        for half, split in splits.items():
            _check(name, half, split, len(classes), None if writer_stats is None else len(writer_stats))
            if train.images.shape[1:] != split.images.shape[1:]:
                shapes = " but ".join("x".join(map(str, other.images.shape[1:])) for other in (train, split))
                raise DataError(
                    f"{name}: train images are {shapes} in the {half} split; bring both to one shape"
                )
        mean, std = channel_stats(train.images)
        return cls(name, train, test, classes, mean, std, validation, writer_stats, note)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape `(C, H, W)` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def stats(self, writer: int | None = None) -> Stats:
        """Return mean and deviation to normalise by: a writer's own where there are such, else those of the set.

        Raises:
            DataError: If writers have their own and this one has none.
        """
        if writer is None or self.writer_stats is None:
            return self.mean, self.std
        if not 0 <= writer < len(self.writer_stats):
            raise DataError(
                f"{self.name}: no statistics of writer {writer}; its writers are 0 to {len(self.writer_stats) - 1}"
            )
        return self.writer_stats[writer]

    def share_memory_(self) -> DataSet:
        """Move all tensors to shared memory, so that spawned workers see them without a copy; return self."""
        splits = [split for split in (self.train, self.test, self.validation) if split is not None]
        for split in splits:
            for tensor in (split.images, split.labels, split.writers):
                if tensor is not None:
                    tensor.share_memory_()  # type: ignore[no-untyped-call]
        return self


def channel_stats(images: Tensor) -> Stats:
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


def _check(name: str, half: str, split: Split, classes: int, writers: int | None) -> None:
    """Refuse an empty split, and labels or writers (None: of no account) outside their range."""
    if not len(split):
        raise DataError(f"{name}: the {half} split is empty; at least one image is needed in each split")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{name}: the {half} labels run from {low} to {high}, outside the range 0 to {classes - 1} "
            f"of its {classes} classes; drop or relabel those rows"
        )
    if writers is None:
        return
    if split.writers is None or int(split.writers.min()) < 0 or int(split.writers.max()) >= writers:
        raise DataError(
            f"{name}: the {half} split has writers without statistics; number its writers from 0 to {writers - 1}"
        )


def _histogram(plane: Tensor) -> Tensor:
    """Count the 256 grey levels of uint8 `[N, H, W]`."""
    counts = torch.zeros(256, dtype=torch.int64)
    for chunk in torch.split(plane, _CHUNK):
        counts += torch.bincount(chunk.reshape(-1), minlength=256)
    return counts
