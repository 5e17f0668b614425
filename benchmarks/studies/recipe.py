"""A study's recipe: one TOML file from which every experiment of the study follows.

```toml
title = "..."                # of the page
about = "..."                # optional: what a reader should know before the tables, Markdown
seeds = 2                    # counted from [base.experiment] seed
target = 0.9                 # optional: an accuracy; tables then say when it was reached

[base.experiment]            # the sections of an experiment file, but [method]
rounds = 100

[scenarios.lambda-2]         # what a scenario changes in the base
fleet.changes_per_round = 2.0

[methods.distreal]           # a label, and what it changes in the scenario
method.name = "distreal"

[methods.distreal-slot]
variant_of = "distreal"      # begins with that label's settings, and is drawn beside it in pictures of its own
scenarios = ["lambda-2"]     # where to run it; everywhere if it does not say
fleet.rule = "slot"
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field

from leanfleet.errors import ExperimentError, did_you_mean
from leanfleet.experiment import Experiment, loads
from leanfleet.experiment.base import Count, FolderName, Section, Share, Text, read_toml

HERE = Path(__file__).resolve().parent

Table = dict[str, Any]
# Part of a link, too.
Name = Annotated[FolderName, Field(max_length=60)]


class Settings(Section):
    """Sections of an experiment file; `leanfleet.experiment` checks what is in them."""

    experiment: Table = Field(default_factory=dict)
    data: Table = Field(default_factory=dict)
    network: Table = Field(default_factory=dict)
    fleet: Table = Field(default_factory=dict)
    training: Table = Field(default_factory=dict)
    budget: Table = Field(default_factory=dict)


class MethodSettings(Settings):
    """One label of a study.

    Attributes:
        method: The section of that name.
        scenarios: Where to run it; empty is everywhere.
        variant_of: Label whose settings these are on top of.
        seeds: How many; as many as the study if it does not say.
    """

    method: Table = Field(default_factory=dict)
    scenarios: tuple[str, ...] = ()
    variant_of: str | None = None
    seeds: Count | None = None


class Recipe(Section):
    """The file's content; see this module."""

    title: Text
    about: str = ""
    seeds: Count = 1
    target: Share | None = None
    base: Settings = Field(default_factory=Settings)
    scenarios: dict[Name, Settings] = Field(min_length=1)
    methods: dict[Name, MethodSettings] = Field(min_length=1)


@dataclass(frozen=True)
class Task:
    """One experiment of a study.

    Attributes:
        scenario: Its scenario.
        label: Its method's label.
        experiment: What to run.
    """

    scenario: str
    label: str
    experiment: Experiment

    @property
    def key(self) -> str:
        """Where its record is, in the study's folder."""
        return f"{self.scenario}/{self.experiment.experiment.name}"


@dataclass(frozen=True)
class Study:
    """A recipe and the experiments that follow from it.

    Attributes:
        name: The file's name without its ending, with the folder it has beside this file.
        path: The file.
        recipe: What it says.
        tasks: Seeds outermost, so that a study that was interrupted has all of its first seeds.
    """

    name: str
    path: Path
    recipe: Recipe
    tasks: tuple[Task, ...]

    def labels(self, scenario: str) -> list[str]:
        """Return what is run in a scenario, in the file's order."""
        return [name for name, m in self.recipe.methods.items() if not m.scenarios or scenario in m.scenarios]


def load(path: Path) -> Study:
    """Return the study of a recipe.

    Raises:
        ExperimentError: The file, or an experiment that follows from it, is wrong; one line says where and how.
    """
    recipe = read_toml(path, Recipe)
    _check_names(path, recipe)
    here = path.resolve().with_suffix("")
    name = here.relative_to(HERE).as_posix() if here.is_relative_to(HERE) else here.name
    study = Study(name, path, recipe, ())
    return Study(study.name, path, recipe, tuple(_tasks(study)))


def _check_names(path: Path, recipe: Recipe) -> None:
    for label, method in recipe.methods.items():
        for scenario in method.scenarios:
            if scenario not in recipe.scenarios:
                hint = did_you_mean(scenario, recipe.scenarios)
                raise ExperimentError(f"{path}: methods.{label}: unknown scenario '{scenario}'{hint}")
        of = method.variant_of
        if of is not None and (of not in recipe.methods or recipe.methods[of].variant_of is not None):
            whole = [name for name, m in recipe.methods.items() if m.variant_of is None]
            hint = did_you_mean(of, whole)
            raise ExperimentError(f"{path}: methods.{label}: variant of an unknown label '{of}'{hint}")


def _tasks(study: Study) -> Iterator[Task]:
    first = int(study.recipe.base.experiment.get("seed", 0))
    seeds = {label: m.seeds or study.recipe.seeds for label, m in study.recipe.methods.items()}
    for number in range(max(seeds.values())):
        for scenario in study.recipe.scenarios:
            for label in study.labels(scenario):
                if number < seeds[label]:
                    yield Task(scenario, label, _experiment(study, scenario, label, first + number))


def _experiment(study: Study, scenario: str, label: str, seed: int) -> Experiment:
    recipe, method = study.recipe, study.recipe.methods[label]
    below = [recipe.methods[method.variant_of]] if method.variant_of else []
    name: Mapping[str, Table] = {"experiment": {"name": f"{label}-s{seed}", "seed": seed}}
    layers = [tables(s) for s in (recipe.base, recipe.scenarios[scenario], *below, method)]
    text = tomli_w.dumps(_merged([*layers, name]))
    return loads(text, where=f"{study.path}: {label} in {scenario}", folder=study.path.parent)


def tables(settings: Settings) -> dict[str, Table]:
    """Return the sections that settings have something to say about."""
    sections = settings.model_dump(exclude={"scenarios", "variant_of", "seeds"}, exclude_defaults=True)
    return {name: table for name, table in sections.items() if table}


def _merged(layers: Sequence[Mapping[str, Table]]) -> dict[str, Table]:
    merged: dict[str, Table] = {}
    for layer in layers:
        for section, table in layer.items():
            merged[section] = {**merged.get(section, {}), **table}
    return merged
