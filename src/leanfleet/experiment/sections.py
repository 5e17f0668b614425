"""The sections of an experiment file, checked by pydantic."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, model_validator

from leanfleet.errors import ExperimentError
from leanfleet.experiment.methods import METHODS, Family
from leanfleet.ledger import Budget
from leanfleet.options import Options

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


def _number_or_writers(value: Any) -> Any:
    if isinstance(value, str) and value != "writers":
        raise ValueError('should be a number, or "writers" for one device a writer')
    return None if value == "writers" else value


class Section(BaseModel):
    """A table of the file: unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GeneralSection(Section):
    """`[experiment]`.

    Attributes:
        name: Names the record's folder.
        seed: Everything random is drawn from it.
        rounds: Rounds to run, unless a budget ends the run earlier.
        eval_every: Rounds from one evaluation to the next; the final round is always evaluated.
    """

    # A folder of this name is made: no separators, no hidden or upper folders.
    name: str = Field("experiment", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)
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
        name: A reference network, or `package.module:function` of the user's.
        keep: Layers whose channels are never dropped; None is the reference network's own choice.
    """

    name: Text = "digits-cnn"
    keep: tuple[Text, ...] | None = None


class FleetSection(Section):
    """`[fleet]`, what all families have in common; Rapp et al. 2022, "Results", with our decisions on time.

    Attributes:
        devices: Number of devices; None (in a file: "writers") is one a writer.
        availability: How the means of a device vary over time.
        ratio: Highest over lowest rate of a device.
        changes_per_round: Mean number of changes in `round_seconds` (lambda), for "exponential".
        trace: CSV file of recorded rates, for "trace".
        round_seconds: What gives rates their scale: at its best a device trains the whole network on all its samples
            in so many virtual seconds.
    """

    devices: Annotated[Count | None, BeforeValidator(_number_or_writers)] = 20
    availability: Literal["exponential", "constant", "uniform", "trace"] = "exponential"
    ratio: float = Field(4.0, ge=1)
    changes_per_round: float = Field(2.0, ge=0)
    trace: Path | None = None
    round_seconds: Positive = 1.0

    @field_serializer("devices")
    def _devices_in_toml(self, devices: int | None) -> int | str:
        return "writers" if devices is None else devices

    @model_validator(mode="after")
    def _trace_fits(self) -> Self:
        if self.availability == "trace" and self.trace is None:
            raise ValueError('availability = "trace": needs trace = "FILE.csv" too')
        if self.availability != "trace" and self.trace is not None:
            raise ValueError(f'availability = "{self.availability}": does not go with a trace')
        return self


class FederatedFleet(FleetSection):
    """`[fleet]` of the federated family; a round lasts `round_seconds`, and ends with the deadline.

    Attributes:
        per_round: Devices selected in a round.
        rule: How a device finds its budget for a mini-batch: from the time that is left, or from the moment's rate.
        margin: Share of the round that the pace rule keeps in reserve.
        late: Whether the finished steps of a late device count.
    """

    per_round: Count = 10
    rule: Literal["pace", "slot"] = "pace"
    margin: float = Field(0.05, ge=0, lt=1)
    late: Literal["partial", "discard"] = "partial"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.devices is not None and self.per_round > self.devices:
            raise ValueError(f"per_round = {self.per_round}: more than the {self.devices} devices")
        return self


class SplitFleet(FleetSection):
    """`[fleet]` of the split family; all its numbers are our decisions.

    Attributes:
        uplink_bytes_per_s: What a device can send in a virtual second.
        downlink_bytes_per_s: What a device can receive in a virtual second.
        latency_seconds: Virtual seconds a message is on its way, whatever its length.
        server_speed: The server's rate as a multiple of a device's best.
        iteration_seconds: A device whose activations do not arrive within so many virtual seconds misses the
            iteration; None waits for all.
    """

    devices: Annotated[Count | None, BeforeValidator(_number_or_writers)] = 5
    availability: Literal["exponential", "constant", "uniform", "trace"] = "constant"
    round_seconds: Positive = 60.0
    uplink_bytes_per_s: Positive = 1.25e6
    downlink_bytes_per_s: Positive = 5e6
    latency_seconds: float = Field(0.02, ge=0)
    server_speed: Positive = 20.0
    iteration_seconds: Positive | None = None


class FederatedTraining(Section):
    """`[training]` of the federated family; defaults as in later code of the authors of Rapp et al. 2022.

    Attributes:
        lr: Learning rate at the start.
        momentum: Heavy-ball momentum.
        weight_decay: L2 penalty.
        batch_size: Samples of a mini-batch.
        epochs: Times a device goes through its samples in a round.
        milestones: Shares of the rounds after which the learning rate is multiplied by `gamma` once more.
        gamma: See `milestones`.
        clip_norm: Largest norm of a step's gradient; None does not clip.
    """

    lr: Positive = 0.1
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(1e-3, ge=0)
    batch_size: Count = 32
    epochs: Count = 1
    milestones: tuple[Share, ...] = (0.6, 0.8)
    gamma: Share = 0.1
    clip_norm: Positive | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)}: should increase")
        return self


class SplitTraining(Section):
    """`[training]` of the split family: Adam on a cosine schedule (AdaSplit's public code).

    Attributes:
        lr: Learning rate at the start.
        weight_decay: L2 penalty, added to the gradient.
        batch_size: Samples of a mini-batch.
        iterations: Mini-batches of every client in a round; None is one epoch of the client with the most samples.
    """

    lr: Positive = 1e-3
    weight_decay: float = Field(1e-5, ge=0)
    batch_size: Count = 32
    iterations: Count | None = None


class BudgetSection(Section):
    """`[budget]`: the fields of `leanfleet.ledger.Budget`."""

    macs: Positive | None = None
    bytes: Positive | None = None
    seconds: Positive | None = None


FAMILIES: Final[dict[Family, dict[str, type[Section]]]] = {
    "federated": {"fleet": FederatedFleet, "training": FederatedTraining},
    "split": {"fleet": SplitFleet, "training": SplitTraining},
}
"""The sections of which every family has its own."""


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
    training: FederatedTraining | SplitTraining = field(default_factory=FederatedTraining)
    method: MethodSection = field(default_factory=MethodSection)
    budget: Budget = field(default_factory=Budget)

    @property
    def options(self) -> Options:
        """The method's own options."""
        return self.method.options

    def __post_init__(self) -> None:
        for name, model in FAMILIES[self.method.family].items():
            if not isinstance(getattr(self, name), model):
                raise ExperimentError(f"[{name}]: {self.method.name} needs a {model.__name__}")
        if self.fleet.devices is None and self.data.partition != "writer":
            raise ExperimentError('[fleet] devices = "writers": only goes with [data] partition = "writer"')
