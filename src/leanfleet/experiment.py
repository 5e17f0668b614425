"""What an experiment file says: TOML in, checked sections out, and back.

Every error is one line that names the file (or the override), the section and the key. Relative paths in a file are
taken from the file's folder, those in an override from the current one, and are absolute from then on: a record can
be resumed from anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer, model_validator
from pydantic_core import ErrorDetails

from leanfleet.errors import ExperimentError, did_you_mean
from leanfleet.federated import METHODS, Options
from leanfleet.ledger import Budget

Tables = dict[str, dict[str, Any]]

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
        source: Name of a data set, `hf:owner/name`, or path of Parquet files.
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


class NetworkSection(Section):
    """`[network]`.

    Attributes:
        name: A reference network, or `package.module:function` of the user's.
        keep: Layers whose channels are never dropped; None is the reference network's own choice.
    """

    name: Text = "digits-cnn"
    keep: tuple[Text, ...] | None = None


class FleetSection(Section):
    """`[fleet]`; Rapp et al. 2022, "Results", with our decisions on pacing.

    Attributes:
        devices: Number of devices; None (in a file: "writers") is one a writer.
        per_round: Devices selected in a round.
        availability: How the means of a device vary over time.
        ratio: Highest over lowest rate of a device.
        changes_per_round: Mean number of changes in a round (lambda), for "exponential".
        trace: CSV file of recorded rates, for "trace".
        round_seconds: Length of a round, the deadline, in virtual seconds.
        rule: How a device finds its budget for a mini-batch: from the time that is left, or from the moment's rate.
        margin: Share of the round that the pace rule keeps in reserve.
        late: Whether the finished steps of a late device count.
    """

    devices: Annotated[Count | None, BeforeValidator(_number_or_writers)] = 20
    per_round: Count = 10
    availability: Literal["exponential", "constant", "uniform", "trace"] = "exponential"
    ratio: float = Field(4.0, ge=1)
    changes_per_round: float = Field(2.0, ge=0)
    trace: Path | None = None
    round_seconds: Positive = 1.0
    rule: Literal["pace", "slot"] = "pace"
    margin: float = Field(0.05, ge=0, lt=1)
    late: Literal["partial", "discard"] = "partial"

    @field_serializer("devices")
    def _devices_in_toml(self, devices: int | None) -> int | str:
        return "writers" if devices is None else devices

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.devices is not None and self.per_round > self.devices:
            raise ValueError(f"per_round = {self.per_round}: more than the {self.devices} devices")
        if self.availability == "trace" and self.trace is None:
            raise ValueError('availability = "trace": needs trace = "FILE.csv" too')
        return self


class TrainingSection(Section):
    """`[training]`; defaults as in later code of the authors of Rapp et al. 2022, who do not give theirs.

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


class BudgetSection(Section):
    """`[budget]`: the fields of `leanfleet.ledger.Budget`."""

    macs: Positive | None = None
    bytes: Positive | None = None
    seconds: Positive | None = None


@dataclass(frozen=True)
class MethodSection:
    """`[method]`.

    Attributes:
        name: A key of `leanfleet.federated.METHODS`.
        options: All other keys, as the method itself defines them.
    """

    name: str = "distreal"
    options: Options = field(default_factory=lambda: METHODS["distreal"].Options())


_SECTIONS: Mapping[str, type[Section]] = {
    "experiment": GeneralSection,
    "data": DataSection,
    "network": NetworkSection,
    "fleet": FleetSection,
    "training": TrainingSection,
    "budget": BudgetSection,
}
_NAMES = (*_SECTIONS, "method")


@dataclass(frozen=True)
class Experiment:
    """A whole experiment; each attribute is the section of the same name.

    Raises:
        ExperimentError: Two sections do not go together.
    """

    experiment: GeneralSection = field(default_factory=GeneralSection)
    data: DataSection = field(default_factory=DataSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    fleet: FleetSection = field(default_factory=FleetSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    method: MethodSection = field(default_factory=MethodSection)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.fleet.devices is None and self.data.partition != "writer":
            raise ExperimentError('[fleet] devices = "writers": only goes with [data] partition = "writer"')


def load(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a file.

    Args:
        path: A TOML file.
        overrides: `section.key=value`, each with a TOML value; bare words are strings. Naming another method drops
            the options of the file's: they mean nothing to it.

    Raises:
        ExperimentError: If the file or an override is wrong; one line says where and what.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ExperimentError(f"{path}: not a text file in UTF-8") from None
    return loads(text, overrides, where=str(path), folder=path.parent)


def loads(
    text: str, overrides: Sequence[str] = (), *, where: str = "experiment", folder: Path | None = None
) -> Experiment:
    """Return the experiment of a text; see `load`.

    Args:
        text: TOML.
        overrides: As in `load`.
        where: What errors call the text.
        folder: Where its relative paths begin; the current folder if None.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        end = f"at line {len(text.splitlines())}, the last one"
        raise ExperimentError(f"{where}: not TOML: {error}".replace("at end of document", end)) from None
    return _Reader(where, folder or Path.cwd()).read(tables, overrides)


def override(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Return the experiment with some keys changed; `overrides` as in `load`."""
    return _Reader("experiment", Path.cwd()).read(_tables(experiment), overrides)


def dumps(experiment: Experiment) -> str:
    """Return the experiment as TOML, complete with defaults; keys without a value (None) are left out."""
    return tomli_w.dumps(_tables(experiment))


def _tables(experiment: Experiment) -> Tables:
    tables: Tables = {name: getattr(experiment, name).model_dump(mode="json") for name in _SECTIONS if name != "budget"}
    tables["method"] = {"name": experiment.method.name, **experiment.method.options.model_dump(mode="json")}
    tables["budget"] = dataclasses.asdict(experiment.budget)
    return {
        name: {key: value for key, value in table.items() if value is not None} for name, table in tables.items()
    }


class _Reader:
    """Checks tables section by section, and knows where each key came from."""

    def __init__(self, where: str, folder: Path) -> None:
        self._where = where
        self._folder = folder
        self._overridden: dict[tuple[str, str | None], str] = {}

    def read(self, raw: Mapping[str, Any], overrides: Sequence[str]) -> Experiment:
        tables = self._check_tables(raw)
        self._apply(tables, overrides)
        self._check_names(tables)
        sections = {name: self._section(name, model, tables.get(name, {})) for name, model in _SECTIONS.items()}
        budget = Budget(**sections.pop("budget").model_dump())
        method = self._method(tables.get("method", {}))
        try:
            return Experiment(**sections, method=method, budget=budget)  # type: ignore[arg-type]
        except ExperimentError as error:
            raise ExperimentError(f"{self._where}: {error}") from None

    def _check_tables(self, raw: Mapping[str, Any]) -> Tables:
        for name, value in raw.items():
            if not isinstance(value, dict):
                raise ExperimentError(f"{self._where}: {name}: stands outside of a section{_home(name)}")
        return {name: dict(table) for name, table in raw.items()}

    def _check_names(self, tables: Tables) -> None:
        for name in tables:
            if name not in _NAMES:
                place = self._place(name, None)
                raise ExperimentError(f"{place}: [{name}]: unknown section{did_you_mean(name, _NAMES)}")

    def _apply(self, tables: Tables, overrides: Sequence[str]) -> None:
        # The method's name first: it decides whether the options in the file still stand.
        for text in sorted(overrides, key=lambda text: not text.startswith("method.name=")):
            section, key, value = _parse_override(text)
            table = tables.setdefault(section, {})
            if (section, key) == ("method", "name") and value != table.get("name", MethodSection.name):
                table.clear()
            table[key] = value
            self._overridden[section, key] = self._overridden[section, None] = f"--set {text}"

    def _method(self, table: Mapping[str, Any]) -> MethodSection:
        options = dict(table)
        name = options.pop("name", MethodSection.name)
        if name not in METHODS:
            hint = did_you_mean(str(name), METHODS)
            place = self._place("method", "name")
            raise ExperimentError(f"{place}: [method] name = {_shown(name)}: unknown method{hint}")
        return MethodSection(name, self._section("method", METHODS[name].Options, options))

    def _section[M: BaseModel](self, name: str, model: type[M], table: Mapping[str, Any]) -> M:
        pass
