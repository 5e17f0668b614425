"""What methods send to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Scalar = int | float | str | bool


@dataclass(frozen=True, eq=False)
class Message:
    """Named tensors and named scalars.

    Two messages are equal when names, types, dtypes, shapes and values are; the order of names is free.

    Attributes:
        tensors: What weighs: parameters, updates, activations.
        scalars: What does not: counts, weights, settings. Integers must fit into 64 bits.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Scalar] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return _typed(self.scalars) == _typed(other.scalars) and (
            self.tensors.keys() == other.tensors.keys()
            and all(_same(tensor, other.tensors[name]) for name, tensor in self.tensors.items())
        )

    __hash__ = None  # type: ignore[assignment]  # tensors have no value to hash


def _typed(scalars: dict[str, Scalar]) -> dict[str, tuple[type, Scalar]]:
    return {name: (type(value), value) for name, value in scalars.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
