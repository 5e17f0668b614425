"""Run records as a report reads them, and which of them are repetitions of one experiment."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanfleet.errors import RecordError
from leanfleet.experiment import METHODS
from leanfleet.runs import Run

Config = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """One run, finished or not.

    Attributes:
        folder: Where it is kept.
        config: The experiment, as its file has it: sections of keys.
        events: What happened, a round each.
        totals: The summary; while the run is not finished, its last round.
        finished: Whether the run came to its end.
    """

    folder: Path
    config: Config
    events: tuple[dict[str, Any], ...]
    totals: dict[str, Any]
    finished: bool

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.config["method"]["name"])

    @property
    def family(self) -> str:
        """The family of the method."""
        known = METHODS[self.method].family if self.method in METHODS else "unknown"
        return str(self.totals.get("family", known))

    @property
    def seed(self) -> int:
        """What everything random was drawn from."""
        return int(self.config["experiment"]["seed"])

    @property
    def late_share(self) -> float | None:
        """Share of participations that were late; None before the first round."""
        share = self.totals.get("late_share")
        return None if share is None else float(share)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rounds that ended with an evaluation, final rounds included."""
        # Without final rounds there is nothing at the end but norms' statistics taken anew: no round.
        return [e for e in self.events if e.get("accuracy") is not None and e.get("final_rounds") != 0]

    def curve(self, over: str) -> tuple[list[float], list[float]]:
        """Return accuracy (a fraction, evaluation A) at every evaluation.

        Args:
            over: Key of the events to go along: `round`, `seconds_virtual`, `macs_total`, ...

        Returns:
            Values of `over`, ascending, and the accuracies there.
        """
        points = [(float(event[over]), float(event["accuracy"])) for event in self.evaluations]
        return [x for x, _ in points], [y for _, y in points]

    @property
    def available_macs(self) -> float:
        """Training MACs that the devices which took part could have spent in all rounds together."""
        return float(sum(event.get("available_macs", 0.0) for event in self.events))

    def accuracy_at(self, seconds_virtual: float) -> float | None:
        """Return the last accuracy that was known at this virtual time; None before the first evaluation."""
        times, accuracies = self.curve("seconds_virtual")
        known = [a for t, a in zip(times, accuracies, strict=True) if t <= seconds_virtual * (1 + 1e-9)]
        return known[-1] if known else None

    def interpolated(self, spent: float, over: str) -> float | None:
        """Return the accuracy when that much was spent, on a line between the evaluations before and after.

        Runs whose evaluations fall at different points compare so, each to each, without favour. None before the
        first evaluation; the last accuracy after the last.

        Args:
            spent: How much of what `over` counts.
            over: As for `curve`.
        """
        places, accuracies = self.curve(over)
        if not places or spent < places[0] * (1 - 1e-9):
            return None
        return float(np.interp(spent, places, accuracies))

    def reached(self, accuracy: float, over: str = "round") -> float | None:
        """Return what was spent at the first evaluation with this accuracy or a better one; None if none has.

        Args:
            accuracy: A fraction, evaluation A.
            over: As for `curve`.
        """
        spent, accuracies = self.curve(over)
        return next((x for x, a in zip(spent, accuracies, strict=True) if a >= accuracy), None)

    @property
    def experiment_key(self) -> str:
        """Equal for runs that differ in name and seed only."""
        general = {k: v for k, v in self.config["experiment"].items() if k not in ("name", "seed")}
        # Every record names its own copy of the lookup table: only the content tells whether it is the same.
        tables = [hashlib.blake2b(f.read_bytes()).hexdigest() for f in sorted(self.folder.glob("lut.*"))]
        return json.dumps([{**self.config, "experiment": general}, tables], sort_keys=True, default=str)


@dataclass(frozen=True)
class Group:
    """Runs of one experiment with several seeds.

    Attributes:
        label: What tables and plots call it.
        method: The method's name.
        records: The runs, at least one.
    """

    label: str
    method: str
    records: tuple[Record, ...]

    @property
    def family(self) -> str:
        """The family of the method."""
        return self.records[0].family


def read(folders: Iterable[Path]) -> list[Record]:
    """Read records; a folder of records, such as a comparison, stands for all of them.

    Raises:
        RecordError: A folder is missing, holds no record, or a record is damaged.
    """
    return [_read(folder) for given in folders for folder in _expand(given)]


def group(records: Sequence[Record]) -> list[Group]:
    """Put repetitions together: what differs in name and seed only. Groups keep the order of first appearance."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.experiment_key, []).append(record)
    members = list(found.values())
    methods = [group[0].method for group in members]
    stems = [re.sub(r"-s\d+$", "", group[0].name) for group in members]
    labels = [m if methods.count(m) == 1 else stem for m, stem in zip(methods, stems, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [str(group[0].folder) for group in members]
    return [Group(label, g[0].method, tuple(g)) for label, g in zip(labels, members, strict=True)]


def _expand(folder: Path) -> list[Path]:
    inside = sorted(path.parent for path in folder.glob("*/experiment.toml"))
    return inside if inside and not (folder / "experiment.toml").exists() else [folder]


def _read(folder: Path) -> Record:
    run = Run.open(folder)
    try:
        config = tomllib.loads(run.experiment_file.read_text(encoding="utf-8"))
        # What tables and plots rely on.
        config["method"]["name"], config["experiment"]["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{run.experiment_file}: damaged: {type(error).__name__}: {error}") from None
    events, summary = tuple(run.events()), run.summary()
    last = events[-1] if events else {}
    return Record(folder, config, events, last if summary is None else summary, summary is not None)
