"""The seam between the loop over rounds and the families: what stands at the centre of a fleet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from leanfleet.ledger import Ledger

Show = Callable[[float], None]
"""Told the share of the present round that is done."""


class Center(Protocol):
    """What one family keeps in the main process, and how it plays a round with the workers.

    `pool` is what the engine has for workers: `Workers` on one machine, nothing among peers.
    """

    def play(self, pool: Any, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Play a round, numbered from 0; book it in the ledger; return what else its event tells."""

    def evaluate(self, pool: Any) -> dict[str, Any]:
        """Return at least `accuracy` and `loss` of the networks in use."""

    def finish(self, pool: Any, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Do what is left to do after the last round; return what the family adds to the run's summary.

        Where that holds `accuracy`, the network has changed since the last evaluation.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint; all names have a prefix other than `ledger/`."""

    def state(self) -> dict[str, Any]:
        """Return all else of a checkpoint, ready for JSON."""

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], pool: Any) -> None:
        """Go back to a checkpoint."""


def shards(work: Mapping[int, float], workers: int) -> list[list[int]]:
    """Spread devices over workers: the longest first, each to the worker with the least to do."""
    loads = np.zeros(workers)
    found: list[list[int]] = [[] for _ in range(workers)]
    for device in sorted(work, key=lambda d: (-work[d], d)):
        least = int(loads.argmin())
        found[least].append(device)
        loads[least] += work[device]
    return found


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def as_tensor(data: bytes) -> Tensor:
    """Return bytes as a tensor, to travel inside a message between processes."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    """Return the bytes that `as_tensor` was given."""
    return tensor.numpy().tobytes()
