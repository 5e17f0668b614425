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


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global stream of a device, from which networks with dropout of their own draw.

    `torch.manual_seed` would keep a traceback of every call as long as no GPU is in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
