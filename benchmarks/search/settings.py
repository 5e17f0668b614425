"""A study's recipe: a small TOML file.

```toml
title = "..."                          # of the page
about = "..."                          # optional, Markdown
network = "femnist-cnn"
data = "mnist_writers"
scale = 0.5                            # of population, generations and short trainings, see variants.py
smaller = ["batch_size", "held_out"]   # optional: what of a short training it is of; steps too if not given
seeds = 3
strategies = ["paper", "fast", ...]    # variants.py names them; "uniform" is one rate for all layers
ways = ["loss", ...]                   # optional: more of them, of which the last front is judged only
points = 24                            # vectors of a front that are trained again, evenly spread in cost
fresh = 5                              # seeds of that: no search has seen them
checkpoints = 6                        # fronts of a search that are, the last among them
vectors = 64                           # random vectors to see how noisy the objective is
```
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from variants import SIZES, UNIFORM, VARIANTS, Size, scaled

from leanfleet.errors import ExperimentError, did_you_mean
from leanfleet.experiment.base import Count, Section, Share, Text, read_toml
from leanfleet.search import PAPER, Protocol

NOISE = "noise"


class SearchRecipe(Section):
    """The file's content; see this module."""

    title: Text
    about: str = ""
    network: Text
    data: Text
    scale: Share = 1.0
    smaller: tuple[Size, ...] = SIZES
    seeds: Count = 3
    strategies: tuple[str, ...] = Field(min_length=1)
    ways: tuple[str, ...] = ()
    points: Annotated[int, Field(ge=4)] = 24
    fresh: Annotated[int, Field(ge=2)] = 5
    checkpoints: Count = 6
    vectors: Annotated[int, Field(ge=8)] = 64

    @property
    def compared(self) -> tuple[str, ...]:
        """All that are compared, those whose way to the last front is shown first."""
        return (*self.strategies, *self.ways)


@dataclass(frozen=True)
class Job:
    """One record of a study.

    Attributes:
        strategy: One of the recipe's, or "noise".
        seed: Everything random.
    """

    strategy: str
    seed: int

    @property
    def key(self) -> str:
        """Name of its files, in the study's folder."""
        return f"{self.strategy}-s{self.seed}"


@dataclass(frozen=True)
class SearchStudy:
    """A recipe and what follows from it.

    Attributes:
        name: The file's name without its ending.
        path: The file.
        recipe: What it says.
    """

    name: str
    path: Path
    recipe: SearchRecipe

    @property
    def jobs(self) -> list[Job]:
        """Seeds outermost, so that a study that was interrupted has all of its first seeds."""
        return [Job(s, seed) for seed in range(self.recipe.seeds) for s in (NOISE, *self.recipe.compared)]

    @property
    def paper(self) -> Protocol:
        """The paper's protocol at this study's scale: what every front is judged with."""
        return scaled(PAPER, self.recipe.scale, self.recipe.smaller)

    def checkpoints(self, strategy: str) -> int:
        """Return of how many of its fronts a strategy is judged by, at most."""
        return self.recipe.checkpoints if strategy in self.recipe.strategies else 1

    def protocol(self, strategy: str) -> Protocol:
        """Return a strategy's protocol at this study's scale."""
        return scaled(VARIANTS[strategy], self.recipe.scale, self.recipe.smaller)

    def identity(self, job: Job) -> dict[str, Any]:
        """Return the settings that a record must have been made with to be this study's; ready for JSON."""
        recipe = self.recipe
        searched = job.strategy not in (NOISE, UNIFORM)
        found = {
            "network": recipe.network,
            "data": recipe.data,
            "judge": asdict(self.paper),
            "fresh": recipe.fresh,
            "vectors": recipe.vectors if job.strategy == NOISE else recipe.points,
            "protocol": asdict(self.protocol(job.strategy)) if searched else None,
            "checkpoints": self.checkpoints(job.strategy) if searched else 1,
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain


def load(path: Path, scale: float | None = None) -> SearchStudy:
    """Return the study of a recipe.

    Args:
        path: The file.
        scale: Instead of the recipe's.

    Raises:
        ExperimentError: The file is wrong; one line says where and how.
    """
    recipe = read_toml(path, SearchRecipe, {} if scale is None else {"scale": scale})
    for strategy in recipe.compared:
        if strategy not in (UNIFORM, *VARIANTS):
            hint = did_you_mean(strategy, [UNIFORM, *VARIANTS])
            raise ExperimentError(f"{path}: strategies: '{strategy}' is unknown{hint}")
    return SearchStudy(path.stem, path, recipe)
