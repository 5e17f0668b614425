"""Running weighted sums in float64: of whole tensors, and of parts of them that only some devices hold.

Nothing is kept per device, so a worker process sums up its own devices and only the sums are merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Self

import torch
from torch import Tensor

_SUM: Final = "sum."
_WEIGHT: Final = "weight."
_TOTAL: Final = "total"

Positions = tuple[Tensor | None, ...]
"""What part of a tensor is meant: one entry for each leading dimension, None for all of it, else the
distinct positions kept (int64 [kept]); the part is their outer product. Entries of two dimensions are a ready-made
index, for parts that are no outer product (grouped convolutions)."""


class WeightedSum:
    """The sum of w_i * theta_i and of w_i over devices i (Rapp et al. 2022, Algorithm 2)."""

    def __init__(self) -> None:
        self.total = 0.0
        self._sums: dict[str, Tensor] = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add one device's tensors. A weight of 0 adds nothing, whatever the tensors hold.

        Args:
            tensors: Named tensors; the same names and shapes every time.
            weight: The device's weight w_i, for instance its MACs or samples.

        Raises:
            ValueError: If the weight is negative or not finite, or if the names differ from those before.
        """
        if not _counts(weight):
            return
        if not self._sums:
            self._sums = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in tensors.items()}
        self._require(tensors)
        for name, tensor in tensors.items():
            self._sums[name].add_(tensor.detach(), alpha=weight)
        self.total += weight

    def merge(self, other: Self) -> None:
        """Add what another sum holds.

        Raises:
            ValueError: If the other sum is over other names.
        """
        if not other._sums:
            return
        if not self._sums:
            self._sums = {name: torch.zeros_like(tensor) for name, tensor in other._sums.items()}
        self._require(other._sums)
        for name, tensor in other._sums.items():
            self._sums[name].add_(tensor)
        self.total += other.total

    def mean(self) -> dict[str, Tensor] | None:
        """Return sum w_i theta_i / sum w_i in float64, or None when nothing was added."""
        if self.total == 0.0:
            return None
        return {name: tensor / self.total for name, tensor in self._sums.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the sum as named float64 tensors, for a message or a checkpoint."""
        total = torch.tensor(self.total, dtype=torch.float64)
        return {_TOTAL: total, **{_SUM + name: tensor for name, tensor in self._sums.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the sum that `tensors()` was taken from.

        Raises:
            KeyError: If the total is missing.
        """
        result = cls()
        result.total = float(tensors[_TOTAL])
        result._sums = _named(tensors, _SUM)
        return result

    def _require(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors.keys() != self._sums.keys():
            unexpected = sorted(tensors.keys() ^ self._sums.keys())
            raise ValueError(f"cannot be summed: only some have {', '.join(unexpected)}")


class HolderSum:
    """The sum of w_i * theta_ij and of w_i for every weight j, over the devices i that hold j.

    This is per-weight averaging over holders, as in the public code of HeteroFL (Diao et al. 2021).
    """

    def __init__(self, sums: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        self._sums = sums
        self._weights = weights

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the empty sum over tensors of these names and shapes."""
        return cls(
            {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in tensors.items()},
            {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in tensors.items()},
        )

    def add(
        self, values: Mapping[str, Tensor], positions: Mapping[str, Positions], weight: float = 1.0
    ) -> None:
        """Add the parts that one device holds. A weight of 0 adds nothing, whatever the tensors hold.

        Args:
            values: The held part of each tensor, packed; tensors of which nothing is held are left out.
            positions: Where each part lies; a name left out is held whole.
            weight: The device's weight w_i.

        Raises:
            KeyError: If a name is not among those of the sum.
            ValueError: If the weight is negative or not finite, or a part has not the shape of its place.
        """
        if not _counts(weight):
            return
        for name, value in values.items():
            place = _place(self._sums[name], positions.get(name, ()))
            held = self._sums[name][place]
            if held.shape != value.shape:
                raise ValueError(f"{name}: a part of shape {tuple(value.shape)} for {tuple(held.shape)}")
            # In place: for a part held whole, `held` is the sum itself, else a gathered copy of some of it.
            held.add_(value.detach(), alpha=weight)
            if place:
                self._sums[name][place] = held
            self._weights[name][place] += weight

    def merge(self, other: Self) -> None:
        """Add what another sum over the same names holds.

        Raises:
            KeyError: If the other sum is over other names.
        """
        for name in self._sums:
            self._sums[name].add_(other._sums[name])
            self._weights[name].add_(other._weights[name])

    def mean(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sum w_i theta_ij / sum w_i where somebody holds j, else the old value, bit for bit.

        Args:
            old: The values so far; the result has their names, shapes and dtypes.
        """
        means = {name: self._sums[name] / self._weights[name] for name in old}
        return {
            name: torch.where(self._weights[name] > 0, means[name].to(tensor.dtype), tensor.detach())
            for name, tensor in old.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the sum as named float64 tensors, for a message or a checkpoint."""
        sums = {_SUM + name: tensor for name, tensor in self._sums.items()}
        return sums | {_WEIGHT + name: tensor for name, tensor in self._weights.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the sum that `tensors()` was taken from."""
        return cls(_named(tensors, _SUM), _named(tensors, _WEIGHT))


def _counts(weight: float) -> bool:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"a weight must be finite and not negative, not {weight}")
    return weight > 0


def _place(tensor: Tensor, positions: Positions) -> tuple[Tensor, ...]:
    if all(kept is None for kept in positions):
        return ()
    return tuple(
        kept
        if kept is not None and kept.ndim > 1
        else (torch.arange(tensor.shape[dim], device=tensor.device) if kept is None else kept).view(
            [-1 if other == dim else 1 for other in range(len(positions))]
        )
        for dim, kept in enumerate(positions)
    )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
