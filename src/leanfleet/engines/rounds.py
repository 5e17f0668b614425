"""Rounds of a gossip fleet, in the simulation as among real processes: iterations, and an end with final rounds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leanfleet.engines.center import Show
from leanfleet.engines.job import GossipJob
from leanfleet.engines.links import Links
from leanfleet.engines.nodes import judge
from leanfleet.ledger import Ledger
from leanfleet.wire import Message, encode, pack
from leanfleet.workers import one_thread


@dataclass
class Found:
    """What a round came to.

    Attributes:
        losses: Of every mini-batch.
        rejected: Messages that could not be used, and why.
        sent: Messages, one for every receiver.
        lost: How many of them never arrived.
    """

    losses: list[float] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    sent: int = 0
    lost: int = 0


class Gossip(ABC):
    """What the simulation and real processes have in common.

    Args:
        job: What is run.
    """

    def __init__(self, job: GossipJob) -> None:
        self.job, self.method, self.fleet = job, job.method, job.fleet
        self.links = Links(job.fleet, job.experiment.experiment.seed)
        # Over the whole run: what was sent in the author's way of counting, and how often something was sent.
        self.totals = {"bytes_authors": 0, "transmissions": 0}
        # What the final rounds came to, once they are over.
        self._final: dict[str, Any] | None = None
        # Of the nodes as they are; None once they have gone on.
        self._accuracy: float | None = None

    @abstractmethod
    def iterate(self, pool: Any, iteration: int, ledger: Ledger, found: Found) -> None:
        """Let nodes train, if it is a step of training, and exchange."""

    @abstractmethod
    def judged(self, pool: Any) -> list[tuple[float, float]]:
        """Return hits and summed loss on all test samples of every node that is there."""

    @abstractmethod
    def end_training(self, pool: Any) -> None:
        """Prepare all nodes for the final rounds."""

    @abstractmethod
    def refresh(self, pool: Any) -> None:
        """Take the statistics of all nodes' norms anew."""

    @abstractmethod
    def told(self, pool: Any, ledger: Ledger, found: Found) -> dict[str, Any]:
        """End a round: gather states, book what is left, return what its event tells."""

    @abstractmethod
    def mean_model(self) -> dict[str, Tensor]:
        """Return the mean over nodes, as they were at the end of the round, of z and of the norms' statistics."""

    @abstractmethod
    def overall(self) -> dict[str, int]:
        """Return the totals of all nodes."""

    def play(self, pool: Any, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let all nodes train and exchange for a round."""
        found, self._accuracy = Found(), None
        for iteration in range(self.job.iterations):
            self.iterate(pool, round * self.job.iterations + iteration, ledger, found)
            show((iteration + 1) / self.job.iterations)
        return self.told(pool, ledger, found)

    def evaluate(self, pool: Any) -> dict[str, Any]:
        """Return the mean over nodes of accuracy and loss on all test samples, and all nodes' accuracies."""
        count, found = len(self.job.data.test), self.judged(pool)
        accuracies = [hits / count for hits, _ in found]
        self._accuracy = math.fsum(accuracies) / len(found)
        return {
            "accuracy": self._accuracy,
            "loss": math.fsum(loss for _, loss in found) / count / len(found),
            "worst_accuracy": min(accuracies),
            "accuracies": accuracies,
        }

    def finish(self, pool: Any, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Play the final rounds, if the method has any, and take the norms' statistics anew.

        They come on top of a budget that has ended training.
        """
        if self._final is None:
            self._final = self._finish(pool, ledger, show)
        return self._final

    def _finish(self, pool: Any, ledger: Ledger, show: Show) -> dict[str, Any]:
        trained, before = ledger.bytes_up, self._accuracy
        if before is None:
            before = self.evaluate(pool)["accuracy"]
        sent = self.overall()["transmissions"]
        dense = sent * dense_bytes(self.job)
        rounds, found = self.method.final_rounds(), Found()
        if rounds:
            self.end_training(pool)
            for number in range(rounds):
                self.iterate(pool, self.method.setting.steps + number, ledger, found)
                show((number + 1) / rounds)
        self.refresh(pool)
        return {
            **self.told(pool, ledger, found),
            **self.evaluate(pool),
            "accuracy_before_final": before,
            "accuracy_averaged": self._accuracy_averaged(),
            "final_rounds": rounds,
            "bytes_up_before_final": trained,
            "values_per_message": self.method.values_per_message(),
            "bytes_per_message": trained / sent if sent else None,
            "ratio": dense / trained if trained else None,
            "ratio_with_final": dense / ledger.bytes_up if ledger.bytes_up else None,
            "eta": self.method.eta,
        }

    def _accuracy_averaged(self) -> float:
        with one_thread():
            hits, _ = judge(self.job, {0: self.mean_model()}, torch.device("cpu"))[0]
        return hits / len(self.job.data.test)


def dense_bytes(job: GossipJob) -> int:
    """Return how long a message without compression is, as encoded."""
    training = job.method.training
    packed = pack(training.layout.gather(training.start(), None))
    return len(encode(Message({"packed": packed}, {"step": 0, "share": 0.5, "weight": 1.0})))
