"""How a search is done: as in the paper, or far cheaper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np

from leanfleet.search.modelled import Modelled, careful
from leanfleet.search.strategies import Chance, Genetic, Known, Space, Strategy, typical
from leanfleet.search.ties import Index, Tied, tied_space
from leanfleet.search.trials import Values


@dataclass(frozen=True)
class Protocol:
    """How vectors are chosen, trained and measured.

    Attributes:
        name: What tables call it.
        strategy: NSGA-II, a fitted model, or chance.
        measure: What a short training gains: accuracy (the paper), or loss (less noisy).
        common: Whether vectors have the mini-batches and mask luck of the extremes' seeds, each compared with no
            dropout of the same seed, so that differences show.
        population: Vectors of a generation, and of the final front.
        generations: After the first population.
        seeds: Short trainings of a vector.
        design: Random vectors that a model is first fitted to.
        refits: Vectors of the model's front that are trained before it is fitted again, each time.
        batch_size: Samples of a mini-batch.
        steps: Mini-batches of a short training.
        held_out: Images to measure on.
        anchors: Seeds that the two constant vectors are trained with first.
        fresh: New seeds that the final front is trained with, to get rid of lucky rows.
        start_accuracy: Accuracy at which pre-training stops, with ten classes; see `start_goal`. Near half of the final
            one (our decision).
        screening: Whether a vector that is clearly beaten after its first seed gets no more seeds.
        seeded: Vectors that need no search, among the first ones: "typical" are one rate for all layers and rates
            that rise or fall with depth; "careful" drop most where that harms the network at its start least for the
            MACs it saves.
        integer: Whether only rates are searched at which a layer keeps exactly a count of its grid; mixes that fill
            the final front may have others.
        tied: Whether layers of one kind in one block have one rate.
    """

    name: str
    strategy: Literal["genetic", "model", "chance"]
    measure: Literal["accuracy", "loss"]
    common: bool
    population: int = 64
    generations: int = 50
    seeds: int = 3
    design: int = 0
    refits: tuple[int, ...] = ()
    batch_size: int = 64
    steps: int = 64
    held_out: int = 5000
    anchors: int = 10
    fresh: int = 10
    start_accuracy: float = 0.45
    screening: bool = False
    seeded: Literal["no", "typical", "careful"] = "no"
    integer: bool = False
    tied: bool = False

    def make(
        self, space: Space, seed: int, sensitivity: Values | None = None, tie: Index | None = None
    ) -> Strategy:
        """Return what chooses the vectors.

        Args:
            space: From what.
            seed: Everything random.
            sensitivity: [groups], see `careful`, which needs it.
            tie: [groups], see `ties`, for `tied`.
        """
        if not self.tied:
            return self._untied(space, seed, sensitivity)
        assert tie is not None
        summed = None if sensitivity is None else np.bincount(tie, sensitivity).astype(np.float64)
        return Tied(self._untied(tied_space(space, tie), seed, summed), tie)

    def _untied(self, space: Space, seed: int, sensitivity: Values | None) -> Strategy:
        known: Known | None = None
        if self.seeded == "typical":
            known = partial(typical, space)
        elif self.seeded == "careful":
            assert sensitivity is not None
            known = partial(careful, sensitivity, space)
        common = {"population": self.population, "seeds": self.seeds, "seed": seed, "known": known}
        if self.strategy == "model":
            return Modelled(space, **common, design=self.design, refits=self.refits)  # type: ignore[arg-type]
        kind = Genetic if self.strategy == "genetic" else Chance
        return kind(space, **common, generations=self.generations)  # type: ignore[arg-type]

    @property
    def trials(self) -> int:
        """Short trainings until the front is known, at most; those of anchors and final front come on top."""
        if self.strategy == "model":
            return self.design + self.seeds * sum(self.refits)
        return self.seeds * self.population * (self.generations + 1)

    @property
    def questions(self) -> int:
        """How often the strategy asks, with time enough."""
        return 1 + (len(self.refits) if self.strategy == "model" else self.generations)


PAPER: Final = Protocol("paper", "genetic", "accuracy", common=False)
"""Rapp et al. 2022, "DSE": 40.1 million training samples."""

FAST: Final = Protocol("fast", "model", "loss", common=True, design=224, refits=(40, 40), held_out=1000)
"""464 instead of 9,792 short trainings (our decision)."""

PROTOCOLS: Final = {protocol.name: protocol for protocol in (FAST, PAPER)}
