"""What a Flower run is told beside the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanfleet.errors import ExperimentError
from leanfleet.experiment import Experiment

_FEDERATED_ONLY = ("min_reports", "stale_weight", "clip_norm", "most_samples")


@dataclass(frozen=True)
class Terms:
    """The app's `[tool.flwr.app.config]`: what the experiment itself does not say.

    Attributes:
        runs: Folder of all records; relative to where the SuperLink was started.
        resume: The record to go on with; empty begins one.
        clock: "real", or "virtual" for devices that only pretend to be slow.
        min_devices: Devices that must be free before a round begins; 0 is as many as a round selects.
        min_reports: Updates without which a round does not end at its deadline but waits for more.
        stale_weight: Weight of an update that is a round late, its square for two, ...; 0 discards it.
        clip_norm: Largest norm of a device's change; 0 clips nothing.
        most_samples: Most samples in a round of a device with data of its own; 0 is the largest share dealt out.
        wait_seconds: How long to wait for devices to come, or to come back.
        poll_seconds: Time between two looks for answers.
    """

    runs: str = "runs"
    resume: str = ""
    clock: str = "real"
    min_devices: int = 0
    min_reports: int = 1
    stale_weight: float = 0.0
    clip_norm: float = 0.0
    most_samples: int = 0
    wait_seconds: float = 600.0
    poll_seconds: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Terms:
        """Return the terms from a run's configuration, whose keys have dashes.

        Raises:
            ExperimentError: A value is of another type, or makes no sense.
        """
        known = {name.replace("_", "-"): name for name in cls.__dataclass_fields__}
        terms = cls(**{known[key]: value for key, value in config.items() if key in known})
        for key, name in known.items():
            value, usual = getattr(terms, name), getattr(cls, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            if not (isinstance(value, str) if isinstance(usual, str) else number):
                raise ExperimentError(f"run configuration: {key} = {value!r} makes no sense")
        if terms.clock not in ("real", "virtual"):
            raise ExperimentError(f"run configuration: clock = '{terms.clock}': say real or virtual")
        return terms

    @property
    def virtual(self) -> bool:
        """Whether devices only pretend to be slow."""
        return self.clock == "virtual"

    def check(self, experiment: Experiment) -> None:
        """Check that an experiment can be run on these terms.

        Raises:
            ExperimentError: One means nothing to its method.
        """
        if experiment.method.family == "federated":
            return
        for name in _FEDERATED_ONLY:
            if getattr(self, name) != getattr(type(self), name):
                raise ExperimentError(
                    f"run configuration: {name.replace('_', '-')}: is for updates of a whole network, and "
                    f"'{experiment.method.name}' sends none; take it out"
                )
        if self.virtual and getattr(experiment.fleet, "iteration_seconds", None) is not None:
            raise ExperimentError(
                "[fleet] iteration_seconds: devices that pretend to be slow know no limit; take it out, or "
                "set clock = 'real'"
            )
