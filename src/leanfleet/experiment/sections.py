"""The sections of an experiment file, checked by pydantic."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from leanfleet.energy import Energy
from leanfleet.errors import ExperimentError
from leanfleet.experiment.base import Count, FolderName, NotNegative, Positive, Section, Text
from leanfleet.experiment.families import (
    FAMILIES,
    FederatedFleet,
    FederatedTraining,
    FleetSection,
    GossipTraining,
    SplitTraining,
)
from leanfleet.experiment.methods import METHODS, Family
from leanfleet.ledger import Budget
from leanfleet.options import Options


class GeneralSection(Section):
    """`[experiment]`.

    Attributes:
        name: Names the record's folder.
        seed: Everything random is drawn from it.
        rounds: Rounds to run, unless a budget ends the run earlier.
        eval_every: Rounds from one evaluation to the next; the final round is always evaluated.
    """

    name: FolderName = Field("experiment", max_length=100)
    seed: int = Field(0, ge=0)
    rounds: Count = 100
    eval_every: Count = 1


class DataSection(Section):
    """`[data]`.

    Attributes:
        source: Name of a data set, `hf:owner/name`, or a path: with a `/` in it, or ending in `.parquet`. A record
            of a run whose data were given in Python says `python:name`.
        folder: Where to find data sets by name; wins over the environment variable `LEANFLEET_DATA`.
        partition: How samples are spread over devices.
        image: Column of the images, where it is not the usual one.
        label: Column of the labels, likewise.
        writer: Column of the writers, likewise.
        augment: What is done to training images.
    """

    source: Text = "digits"
    folder: Path | None = None
    partition: Text = "iid"
    image: Text | None = None
    label: Text | None = None
    writer: Text | None = None
    augment: Literal["none", "crop-flip"] = "none"

    @property
    def source_path(self) -> Path | None:
        """The source, where it is a path and no name."""
        if self.source.startswith(("hf:", "python:")) or not (
            "/" in self.source or self.source.endswith(".parquet")
        ):
            return None
        return Path(self.source)


class NetworkSection(Section):
    """`[network]`.

    Attributes:
        name: A reference network, or a function of the user's: `package.module:function`, or a file and a function,
            `FOLDER/FILE.py:function`, which becomes a folder and `FILE:function`.
        folder: Where that module is found, beside the current folder and the installed packages; if None, the file's
            folder or the current one, whichever has it.
        keep: Layers whose channels are never dropped; None is the reference network's own choice.
    """

    name: Text = "digits-cnn"
    folder: Path | None = None
    keep: tuple[Text, ...] | None = None


class BudgetSection(Section):
    """`[budget]`: the fields of `leanfleet.ledger.Budget`."""

    macs: Positive | None = None
    bytes: Positive | None = None
    seconds: Positive | None = None
    joules: Positive | None = None


class EnergySection(Section):
    """`[energy]`: the fields of `leanfleet.energy.Energy`, all of them assumptions; without it none is reckoned."""

    joules_per_mac: NotNegative = Energy.joules_per_mac
    joules_per_byte_sent: NotNegative = Energy.joules_per_byte_sent
    joules_per_byte_received: NotNegative = Energy.joules_per_byte_received


@dataclass(frozen=True)
class MethodSection:
    """`[method]`.

    Attributes:
        name: A key of `leanfleet.experiment.METHODS`.
        options: All other keys, as the method itself defines them.
    """

    name: str = "distreal"
    options: Options = field(default_factory=lambda: METHODS["distreal"].Options())

    @property
    def family(self) -> Family:
        """The family of the method."""
        return METHODS[self.name].family


@dataclass(frozen=True)
class Experiment:
    """A whole experiment; each attribute is the section of the same name.

    Raises:
        ExperimentError: Two sections do not go together.
    """

    experiment: GeneralSection = field(default_factory=GeneralSection)
    data: DataSection = field(default_factory=DataSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    fleet: FleetSection = field(default_factory=FederatedFleet)
    training: FederatedTraining | SplitTraining | GossipTraining = field(default_factory=FederatedTraining)
    method: MethodSection = field(default_factory=MethodSection)
    budget: Budget = field(default_factory=Budget)
    energy: Energy | None = None

    @property
    def options(self) -> Options:
        """The method's own options."""
        return self.method.options

    def __post_init__(self) -> None:
        for name, model in FAMILIES[self.method.family].items():
            if not isinstance(getattr(self, name), model):
                raise ExperimentError(f"[{name}]: {self.method.name} needs a {model.__name__}")
        if self.budget.joules is not None and self.energy is None:
            raise ExperimentError(
                "[budget] joules: needs a section [energy]; an empty one takes assumed constants"
            )
        if self.fleet.devices is None and self.data.partition != "writer":
            raise ExperimentError('[fleet] devices = "writers": only goes with [data] partition = "writer"')
