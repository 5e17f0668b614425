"""The data a search trains on: a distorted copy of a data set, so that no device's own data are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from leanfleet.data import DataSet, Split
from leanfleet.errors import DataError
from leanfleet.randomness import torch_generator

_FACTOR = 0.5
_CHUNK = 4096
# ITU-R 601-2, as PIL's saturation has it.
_LUMA = (0.299, 0.587, 0.114)


def proxy(data: DataSet, held_out: int, seed: int) -> DataSet:
    """Return a distorted copy of the training images, some of them held out to measure on (Rapp et al. 2022, "DSE").

    That training and measurement both use the distorted copy is our reconstruction; test images are never touched.

    Args:
        data: What the fleet will train on.
        held_out: Images to measure on; at most a fifth of all.
        seed: Decides which.

    Raises:
        DataError: There are too few.
    """
    order = torch.randperm(len(data.train), generator=torch_generator(seed, "held out"))
    held_out = min(held_out, len(order) // 5)
    # Norms need two values to take statistics of.
    if held_out < 2:
        raise DataError(
            f"{data.name}: {len(order)} training images; a search needs 10 at least, to hold two out"
        )
    halves = []
    for rows in (order[held_out:], order[:held_out]):
        part = data.train.select(rows)
        halves.append(Split(distort(part.images), part.labels))
    return DataSet.of(f"{data.name}, distorted", halves[0], halves[1], data.classes)


def distort(images: Tensor) -> Tensor:
    """Halve brightness and contrast, and saturation where there is colour (Rapp et al. 2022).

    Args:
        images: uint8 [N, C, H, W].

    Returns:
        uint8 [N, C, H, W].
    """
    return torch.cat([_distort(chunk) for chunk in torch.split(images, _CHUNK)])


def _distort(images: Tensor) -> Tensor:
    x = images.float() * _FACTOR
    x = x.lerp(_grey(x).mean((1, 2, 3), keepdim=True), _FACTOR)
    if images.shape[1] == len(_LUMA):
        x = x.lerp(_grey(x), _FACTOR)
    return x.round().to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != len(_LUMA):
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(_LUMA).view(1, -1, 1, 1)).sum(1, keepdim=True)
