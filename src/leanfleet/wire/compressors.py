"""Compressors: what of a tensor is sent, and how coarsely. Pure functions of tensor and random stream.

Each takes one parameter tensor (top-k "per layer") and returns a payload; `payload.dense()` is C(v) of the
error-feedback recursion e <- v - C(v), whose memory belongs to the caller. After Sparse-Push (Aketi et al. 2021,
arXiv 2102.05715) as its first author's code has it; see each class for where it is from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from leanfleet.wire.payload import Levels, Payload, Values, finite, flattened, gather, nonzero, whole
from leanfleet.wire.selection import largest


class Compressor(Protocol):
    """Anything that picks what of a tensor is sent."""

    def compress(self, tensor: Tensor, rng: np.random.Generator) -> Payload:
        """Return what is sent of a tensor of floating point; equal streams give equal payloads.

        Args:
            tensor: What one would like to send: parameters and error memory, or a difference.
            rng: The stream of this tensor and step; deterministic compressors leave it alone.

        Raises:
            WireError: If a value is not finite.
        """
        ...


def kept_count(density: float, numel: int) -> int:
    """Return K = max(1, floor(density * numel)), of an empty tensor 0.

    What is missing to a whole number by rounding alone is forgiven: 640 * (1 - 0.9) is 64.

    Raises:
        ValueError: If the density is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"a density of {density}; it must be in (0, 1]")
    return min(numel, max(1, math.floor(density * numel + 1e-9)))


@dataclass(frozen=True)
class Identity:
    """Everything, with values rounded if asked (our extension: the rounding goes into the error memory)."""

    values: Values = "exact"

    def compress(self, tensor: Tensor, rng: np.random.Generator) -> Payload:
        """Return the whole tensor."""
        return whole(tensor).rounded(self.values)


@dataclass(frozen=True)
class TopK:
    """The share `density` of largest magnitudes, at least one; of equals the lowest positions.

    Contracts: |v - C(v)|^2 <= (1 - K/numel) |v|^2 for exact values. Bfloat16 rather than half precision for
    shorter ones, because with error memory values grow to many times the parameters.
    """

    density: float
    values: Values = "exact"

    def compress(self, tensor: Tensor, rng: np.random.Generator) -> Payload:
        """Return the largest elements."""
        flat = flattened(tensor)
        positions = largest(flat, kept_count(self.density, flat.numel()))
        return gather(tensor, positions).rounded(self.values)


@dataclass(frozen=True)
class RandomK:
    """The share `density` of elements at random positions, not scaled up, as error memory wants it.

    Contracts on average: E |v - C(v)|^2 = (1 - K/numel) |v|^2 for exact values. Where both sides hold the same
    stream, `payload.values_only()` is all that has to travel: the receiver puts it `at(compressor.positions(...))`.
    Positions follow from the stream's raw bits, which are the same in every version of NumPy.
    """

    density: float
    values: Values = "exact"

    def positions(self, numel: int, rng: np.random.Generator) -> Tensor:
        """Return ascending random positions [K]: those of the least of `numel` random numbers."""
        lots, count = rng.bit_generator.random_raw(numel), kept_count(self.density, numel)
        chosen = np.argpartition(lots, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
        return torch.from_numpy(np.sort(chosen))

    def compress(self, tensor: Tensor, rng: np.random.Generator) -> Payload:
        """Return the elements at random positions."""
        return gather(flattened(tensor).reshape(tensor.shape), self.positions(tensor.numel(), rng)).rounded(
            self.values
        )


@dataclass(frozen=True)
class Qsgd:
    """QSGD (Alistarh et al. 2017): Q(v) = |v| sign(v) round(q |v_i| / |v|) / q, q = 2^bits - 1, rounded at random.

    Unbiased. With `biased`, divided by 1 + min(d/q^2, sqrt(d)/q) and then contracting on average, which error
    memory needs. Sent are the levels, with a bit for the sign, of those elements that are not zero.

    Attributes:
        bits: For the magnitude; 1 to 15.
        biased: Whether to scale down.
    """

    bits: int
    biased: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 15:
            raise ValueError(f"QSGD with {self.bits} bits; there may be 1 to 15")

    def compress(self, tensor: Tensor, rng: np.random.Generator) -> Payload:
        """Return random levels whose mean is the tensor."""
        flat = flattened(tensor).float()
        levels = Levels(self.bits + 1, signed=True)
        q = levels.largest
        norm = float(torch.linalg.vector_norm(flat, dtype=torch.float64))
        noise = torch.from_numpy(rng.random(len(flat), dtype=np.float32))
        level = (flat.abs() / (norm or 1.0) * q + noise).floor_().clamp_(max=q)
        codes = (level * flat.sign()).to(torch.int32)
        shrink = 1 + min(len(flat) / q**2, len(flat) ** 0.5 / q) if self.biased else 1.0
        positions = nonzero(codes)
        scales = finite(torch.tensor([norm / q / shrink]))
        return Payload(tuple(tensor.shape), tensor.dtype, positions, codes[positions], levels, scales)


@dataclass(frozen=True)
class Sign:
    """A bit for each element and one scale: C(v) = (|v|_1 / d) sign(v), sign(0) = 1 (Karimireddy et al. 2019).

    Contracts: |v - C(v)|^2 = |v|^2 - |v|_1^2 / d. Our decision where the paper is silent.
    """

    def compress(self, tensor: Tensor, rng: np.random.Generator) -> Payload:
        """Return the signs, scaled to the mean magnitude."""
        flat = flattened(tensor)
        codes = (flat >= 0).to(torch.int32) * 2 - 1
        mean = flat.abs().sum(dtype=torch.float64) / max(1, len(flat))
        return Payload(
            tuple(tensor.shape),
            tensor.dtype,
            None,
            codes,
            Levels(1, signed=True),
            finite(mean.float().reshape(1)),
        )
