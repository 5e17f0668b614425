"""A model's parameters as one vector, in which each tensor has its place; and parts of such a vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from leanfleet.errors import NetworkError
from leanfleet.wire import Compressor, Expected, Payload, RandomK, gather


class Part(NamedTuple):
    """Some values of a vector.

    Attributes:
        positions: Where they stand, ascending int64 [values]; None is everywhere.
        values: What they are [values].
    """

    positions: Tensor | None
    values: Tensor

    def add_to_(self, vector: Tensor, factor: float = 1.0) -> None:
        """Add the values, times a factor, to a vector in place."""
        if self.positions is None:
            vector.add_(self.values, alpha=factor)
        else:
            vector.index_add_(0, self.positions, self.values, alpha=factor)


@dataclass(frozen=True)
class Layout:
    """Which tensors make up the vector, in the order of their names, as messages have them.

    Attributes:
        shapes: Of every tensor, by rising name.
        dtype: Of all of them.
        device: Where the vector lives.
    """

    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, net: nn.Module) -> Layout:
        """Return the layout of all parameters of a network that are trained.

        Raises:
            NetworkError: There are none, or they are of several dtypes.
        """
        found = {name: p for name, p in sorted(net.named_parameters()) if p.requires_grad}
        dtypes = sorted({str(p.dtype) for p in found.values()})
        if len(dtypes) != 1:
            raise NetworkError(f"a network for gossip has parameters of one dtype, not of {dtypes or 'none'}")
        first = next(iter(found.values()))
        return cls({name: tuple(p.shape) for name, p in found.items()}, first.dtype, first.device)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of elements of every tensor."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def starts(self) -> list[int]:
        """Where every tensor begins, and at last where the vector ends."""
        return list(itertools.accumulate(self.sizes, initial=0))

    @property
    def size(self) -> int:
        """Length of the vector, d."""
        return self.starts[-1]

    def zeros(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return a vector of zeros [d]."""
        return torch.zeros(self.size, dtype=dtype or self.dtype, device=self.device)

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a new vector [d] of named tensors."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.shapes])

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the named tensors in a vector's memory."""
        pieces = torch.split(vector, self.sizes)
        return {name: p.view(shape) for (name, shape), p in zip(self.shapes.items(), pieces, strict=True)}

    def expected(self, dtype: torch.dtype | None = None) -> Expected:
        """Return what a message about all tensors holds: of their own dtype, or another."""
        return {name: (dtype or self.dtype, shape) for name, shape in self.shapes.items()}

    def compress(
        self, vector: Tensor, compressor: Compressor, rng: np.random.Generator
    ) -> dict[str, Payload]:
        """Return what a compressor makes of every tensor of a vector; they share one random stream."""
        return {name: compressor.compress(view, rng) for name, view in self.views(vector.cpu()).items()}

    def draw(self, compressor: RandomK, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the positions in every tensor that `compress` takes with the same stream."""
        return {
            name: compressor.positions(size, rng) for name, size in zip(self.shapes, self.sizes, strict=True)
        }

    def gather(self, vector: Tensor, positions: Tensor | None) -> dict[str, Payload]:
        """Return the elements at ascending positions of a vector as payloads; None takes all."""
        # One copy of the whole vector, where it lives on a GPU, instead of one for every tensor.
        views = self.views(vector.cpu())
        if positions is None:
            return {name: gather(view, None) for name, view in views.items()}
        positions = positions.cpu()
        cuts = torch.searchsorted(positions, torch.tensor(self.starts)).tolist()
        return {
            name: gather(views[name], positions[cuts[k] : cuts[k + 1]] - self.starts[k])
            for k, name in enumerate(self.shapes)
        }

    def join(self, payloads: Mapping[str, Payload]) -> Part:
        """Return payloads of all tensors as a part of the vector, as a receiver sees them."""
        ordered = [payloads[name] for name in self.shapes]
        values = torch.cat([payload.received() for payload in ordered]).to(self.device)
        if all(payload.positions is None for payload in ordered):
            return Part(None, values)
        places = [
            start + (torch.arange(payload.numel) if payload.positions is None else payload.positions)
            for payload, start in zip(ordered, self.starts, strict=False)
        ]
        return Part(torch.cat(places).to(self.device), values)
