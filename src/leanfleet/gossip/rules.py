"""Mixing rules: what a node offers of its vector, and what the offers of others make of it.

With p_ij the weight from sender j to receiver i (columns sum to 1) and eta the consensus step, a node that offers c
gives up eta (1 - p_ii) c and receives the sum of eta p_ij c_j: whatever c is, mixing leaves the sum over all nodes
as it is. Three rules differ in what c is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from leanfleet.gossip.layout import Layout, Part
from leanfleet.wire import Compressor, Identity, Payload

Received = Iterable[tuple[float, Part]]
"""Shares eta p_ij, and what they are shares of."""


class Offer(NamedTuple):
    """What goes out.

    Attributes:
        payloads: What is sent, of every tensor.
        basis: Of what a share is given away.
    """

    payloads: dict[str, Payload]
    basis: Part


class Rule(Protocol):
    """What a mixing rule does.

    Attributes:
        compressor: What it sends of a tensor.
        eta: The consensus step.
    """

    compressor: Compressor
    eta: float

    def offer(self, x: Tensor, rng: np.random.Generator) -> Offer:
        """Return what to send of a vector [d], and remember what that leaves."""

    def mix_(self, x: Tensor, received: Received) -> None:
        """Add what came from others to a vector [d]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what is remembered, in place."""


@dataclass(eq=False)
class Whole:
    """Everything is sent and mixed at once: SGP (Assran et al. 2019), and D-PSGD (Lian et al. 2017)."""

    layout: Layout
    compressor: Compressor = field(default_factory=Identity)
    eta: float = 1.0

    def offer(self, x: Tensor, rng: np.random.Generator) -> Offer:
        """See `Rule.offer`."""
        payloads = self.layout.compress(x, self.compressor, rng)
        return Offer(payloads, self.layout.join(payloads))

    def mix_(self, x: Tensor, received: Received) -> None:
        """See `Rule.mix_`."""
        for share, part in received:
            part.add_to_(x, share)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


@dataclass(eq=False)
class ErrorMemory:
    """c = C(x + e), e <- x + e - c: Sparse-Push (Aketi et al. 2021), and DeepSqueeze (Tang et al. 2019).

    The model itself is compressed, not its change, so no copies of neighbours are kept and links may change. The
    price is a floor of disagreement, 7 to 14 % at eta = density, which grows with the size of the parameters.

    Attributes:
        layout: Of the vector.
        compressor: C.
        eta: The consensus step.
        memory: e [d], no mass: dropping it changes no sum.
    """

    layout: Layout
    compressor: Compressor
    eta: float
    memory: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.memory = self.layout.zeros()

    def offer(self, x: Tensor, rng: np.random.Generator) -> Offer:
        """See `Rule.offer`."""
        self.memory.add_(x)
        payloads = self.layout.compress(self.memory, self.compressor, rng)
        sent = self.layout.join(payloads)
        sent.add_to_(self.memory, -1)
        return Offer(payloads, sent)

    def mix_(self, x: Tensor, received: Received) -> None:
        """See `Rule.mix_`."""
        for share, part in received:
            part.add_to_(x, share)

    def tensors(self) -> dict[str, Tensor]:
        """Return the memory."""
        return {"memory": self.memory}


@dataclass(eq=False)
class Estimates:
    """CHOCO on push-sum (after Koloskova et al. 2019): differences to a public estimate are sent, c is the estimate.

    q = C(x - h), h <- h + q, m <- m + eta sum p_ij q_j, x <- x + m - eta (1 - p_ii) h. There is hardly a floor, but m
    is right only where in-neighbours stay the same and no message is lost.

    Attributes:
        layout: Of the vector.
        compressor: C.
        eta: The consensus step.
        estimate: h [d], what the out-neighbours know of this node.
        neighbours: m [d], eta times the weighted sum of the in-neighbours' estimates.
    """

    layout: Layout
    compressor: Compressor
    eta: float
    estimate: Tensor = field(init=False)
    neighbours: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.estimate = self.layout.zeros()
        self.neighbours = self.layout.zeros()

    def offer(self, x: Tensor, rng: np.random.Generator) -> Offer:
        """See `Rule.offer`."""
        payloads = self.layout.compress(x - self.estimate, self.compressor, rng)
        self.layout.join(payloads).add_to_(self.estimate)
        return Offer(payloads, Part(None, self.estimate))

    def mix_(self, x: Tensor, received: Received) -> None:
        """See `Rule.mix_`."""
        for share, part in received:
            part.add_to_(self.neighbours, share)
        x.add_(self.neighbours)

    def tensors(self) -> dict[str, Tensor]:
        """Return both estimates."""
        return {"estimate": self.estimate, "neighbours": self.neighbours}


def load(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy named tensors into those of the same names."""
    for name, tensor in into.items():
        tensor.copy_(tensors[name])
