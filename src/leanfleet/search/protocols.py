"""How a search is done: as in the paper, or far cheaper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from leanfleet.search.strategies import Chance, Genetic, Modelled, Space, Strategy


@dataclass(frozen=True)
class Protocol:
    """How vectors are chosen, trained and measured.

    Attributes:
        name: What tables call it.
        strategy: NSGA-II, a fitted model, or chance.
        measure: What a short training gains: accuracy (the paper), or loss (less noisy).
        common: Whether all vectors see the same mini-batches and mask luck, so that differences show.
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
        start_accuracy: Accuracy at which pre-training stops: near half of the final one (our decision).
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

    def make(self, space: Space, seed: int) -> Strategy:
        """Return what chooses the vectors."""
        if self.strategy == "model":
            sizes = {"population": self.population, "design": self.design, "refits": self.refits}
            return Modelled(space, **sizes, seeds=self.seeds, seed=seed)  # type: ignore[arg-type]
        kind = Genetic if self.strategy == "genetic" else Chance
        generations = {"population": self.population, "generations": self.generations}
        return kind(space, **generations, seeds=self.seeds, seed=seed)

    @property
    def trials(self) -> int:
        """Short trainings until the front is known; those of the anchors and the final front come on top."""
        if self.strategy == "model":
            return self.design + self.seeds * sum(self.refits)
        return self.seeds * self.population * (self.generations + 1)

    def within(self, trials: int) -> Protocol:
        """Return the protocol with at most so many short trainings, as far as it can do with fewer."""
        if trials >= self.trials:
            return self
        if self.strategy == "model":
            share = trials / self.trials
            refits = tuple(max(4, int(n * share)) for n in self.refits)
            return replace(self, design=max(12, int(self.design * share)), refits=refits)
        return replace(self, generations=max(0, trials // (self.seeds * self.population) - 1))


PAPER: Final = Protocol("paper", "genetic", "accuracy", common=False)
"""Rapp et al. 2022, "DSE": 40.1 million training samples."""

FAST: Final = Protocol("fast", "model", "loss", common=True, design=224, refits=(40, 40), held_out=1000)
"""464 instead of 9,792 short trainings (our decision)."""

PROTOCOLS: Final = {protocol.name: protocol for protocol in (FAST, PAPER)}
