"""Random streams keyed by what they are for, so that order, workers and resume do not change them."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """Return a 63-bit key of (seed, round, device, purpose, ...)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator for the stream named by `parts`."""
    return torch.Generator().manual_seed(key(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """Return a counter-based (Philox) generator for the stream named by `parts`."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
