"""What a split run costs by formula: the yardstick for what the ledger counts (Chopra et al. 2021).

All numbers are exact. MACs are the authors': forward MACs of convolutions and linear layers in training steps,
without the backward pass and without evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from leanfleet.split.costs import local_rounds, talkers

_FLOAT_BYTES: Final = 4


@dataclass(frozen=True)
class Schedule:
    """How much is trained, and how much of it reaches the server.

    Attributes:
        clients: N.
        rounds: R.
        iterations: B, mini-batches of every client in a round.
        kappa: Share of the rounds without a server; 0 for SL-basic and SplitFed.
        eta: Share of the clients that talk in an iteration of the other rounds; 1 likewise.
        batch_size: Samples of a mini-batch.
    """

    clients: int
    rounds: int
    iterations: int
    kappa: float = 0.0
    eta: float = 1.0
    batch_size: int = 32

    @property
    def samples(self) -> int:
        """S, the samples that all clients train on."""
        return self.batch_size * self.clients * self.iterations * self.rounds

    @property
    def samples_sent(self) -> int:
        """S * g * eta, the samples that reach the server."""
        rounds = self.rounds - local_rounds(self.kappa, self.rounds)
        return self.batch_size * talkers(self.eta, self.clients) * self.iterations * rounds


def client_macs(schedule: Schedule, net_macs: int, head_macs: int = 0) -> int:
    """Return the forward MACs of all clients.

    Args:
        schedule: How much is trained.
        net_macs: Forward MACs per sample of the client's half.
        head_macs: Likewise of its projection head.
    """
    return schedule.samples * (net_macs + head_macs)


def server_macs(schedule: Schedule, net_macs: int) -> int:
    """Return the forward MACs of the server, whose half costs `net_macs` per sample."""
    return schedule.samples_sent * net_macs


def dense_bytes_up(schedule: Schedule, values: int) -> int:
    """Return the bytes of all activations at 4 bytes a number, `values` per sample; no labels, no headers."""
    return _FLOAT_BYTES * values * schedule.samples_sent


def handover_bytes(schedule: Schedule, params: int) -> int:
    """Return the bytes of passing the client's half (and head) with `params` numbers on after every client step.

    From client to client directly; relayed by the server it is twice as much.
    """
    return _FLOAT_BYTES * params * schedule.clients * schedule.iterations * schedule.rounds
