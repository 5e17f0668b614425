"""Who talks to the server in an iteration: discounted UCB as in AdaSplit, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

WINDOW: Final = 2047
"""Iterations that AdaSplit looks back over. Older losses weigh gamma^2047 of all: 1e-46 at gamma 0.95."""

_UNHEARD: Final = 100.0
"""The loss that is predicted of a client before anything is known; more than any real one."""

_NEVER: Final = 1e-15
"""Stands for the number of selections of a client that has had none."""


class Orchestrator(Protocol):
    """Chooses, for every iteration of the global phase, the clients that talk to the server."""

    def record(self, client: int, loss: float) -> None:
        """Take in the mean loss that the server found for a client's batch; it counts as selected.

        Raises:
            ValueError: The loss is not finite; nothing has changed.
        """

    def end_iteration(self) -> None:
        """Close an iteration of the global phase; a client that was not recorded counts as not selected."""

    def select(self, k: int, generator: torch.Generator) -> list[int]:
        """Return `min(k, clients)` different clients, the most wanted first."""

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that the next selections depend on, for a checkpoint."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state` was taken, with the same number of clients."""


class Ucb:
    """Discounted UCB (Chopra et al. 2021, as the first author's code has it; after Garivier and Moulines 2011).

    For client i over the iterations t of the global phase, T of them with the one being predicted:

        l_i = sum_t gamma^(T-1-t) L_i^t       s_i = 1e-15 + sum_t gamma^(T-1-t) S_i^t
        A_i = l_i / s_i + sqrt(2 ln(T) / s_i)

    S is 1 where the client was heard and L its loss, else a prediction: the mean of the two before, which start
    at 100. The sums are kept by recursion, so that there are a few numbers for every client and no history: the
    authors' window shows only in T. Who waits is not forgotten, A_i grows as gamma^-t.

    Args:
        clients: How many there are.
        gamma: Discount, in (0, 1).
    """

    def __init__(self, clients: int, gamma: float) -> None:
        self._gamma = gamma
        # Discounted sums over the closed rows, then the losses of the last one.
        self._losses = torch.zeros(clients, dtype=torch.float64)
        self._hearings = torch.zeros(clients, dtype=torch.float64)
        self._last = torch.full((clients,), _UNHEARD, dtype=torch.float64)
        # The open row: losses, predicted until they are heard.
        self._open = self._last.clone()
        self._heard = torch.zeros(clients, dtype=torch.float64)
        self._closed = torch.zeros((), dtype=torch.int64)

    def record(self, client: int, loss: float) -> None:
        """See `Orchestrator.record`."""
        if not math.isfinite(loss):
            raise ValueError(f"the loss of client {client} is {loss}")
        self._open[client] = loss
        self._heard[client] = 1.0

    def end_iteration(self) -> None:
        """See `Orchestrator.end_iteration`."""
        self._losses = self._gamma * self._losses + self._open
        self._hearings = self._gamma * self._hearings + self._heard
        self._last, self._open = self._open, (self._last + self._open) / 2
        self._heard = torch.zeros_like(self._heard)
        self._closed = self._closed + 1

    def scores(self) -> Tensor:
        """Return A_i, float64 [clients]."""
        losses = self._gamma * self._losses + self._open
        hearings = self._gamma * self._hearings + self._heard + _NEVER
        rows = min(int(self._closed) + 1, WINDOW)
        return losses / hearings + torch.sqrt(2 * math.log(rows) / hearings)

    def select(self, k: int, generator: torch.Generator) -> list[int]:
        """Return the k largest scores, ties at random; before the first iteration all are equal."""
        scores = self.scores()
        return largest(scores, k, torch.randperm(len(scores), generator=generator))

    def state(self) -> dict[str, Tensor]:
        """See `Orchestrator.state`."""
        return {name.removeprefix("_"): tensor.clone() for name, tensor in self._tensors().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Orchestrator.load`."""
        for name in self._tensors():
            setattr(self, name, state[name.removeprefix("_")].clone())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def largest(scores: Tensor, k: int, order: Tensor) -> list[int]:
    """Return the clients with the k largest scores, largest first; of equal ones, who is first in `order`.

    Args:
        scores: [clients].
        k: How many; all if there are fewer.
        order: int64 [clients], a permutation of the clients.
    """
    ranks = scores[order].argsort(descending=True, stable=True)
    return [int(client) for client in order[ranks[:k]]]


class _Deaf:
    """A choice that no loss changes."""

    def __init__(self, clients: int) -> None:
        self._clients = clients

    def record(self, client: int, loss: float) -> None:
        """See `Orchestrator.record`."""
        if not math.isfinite(loss):
            raise ValueError(f"the loss of client {client} is {loss}")

    def end_iteration(self) -> None:
        """See `Orchestrator.end_iteration`."""

    def state(self) -> dict[str, Tensor]:
        """See `Orchestrator.state`."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Orchestrator.load`."""


class Random(_Deaf):
    """Uniform without replacement, anew every time."""

    def select(self, k: int, generator: torch.Generator) -> list[int]:
        """See `Orchestrator.select`."""
        return [int(client) for client in torch.randperm(self._clients, generator=generator)[:k]]


class All(_Deaf):
    """Every client, whatever k."""

    def select(self, k: int, generator: torch.Generator) -> list[int]:
        """Return all clients, the lowest number first."""
        return list(range(self._clients))


class RoundRobin(_Deaf):
    """The next k, and then on from there."""

    def __init__(self, clients: int) -> None:
        super().__init__(clients)
        self._next = 0

    def select(self, k: int, generator: torch.Generator) -> list[int]:
        """See `Orchestrator.select`; every call moves on."""
        chosen = [(self._next + i) % self._clients for i in range(min(k, self._clients))]
        self._next = (self._next + len(chosen)) % self._clients
        return chosen

    def state(self) -> dict[str, Tensor]:
        """See `Orchestrator.state`."""
        return {"next": torch.tensor(self._next)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Orchestrator.load`."""
        self._next = int(state["next"])


SELECTIONS: Final[dict[str, Callable[[int, float], Orchestrator]]] = {
    "ucb": Ucb,
    "random": lambda clients, gamma: Random(clients),
    "all": lambda clients, gamma: All(clients),
    "round_robin": lambda clients, gamma: RoundRobin(clients),
}
"""Every orchestrator by its name in an experiment file; called with (clients, gamma)."""
