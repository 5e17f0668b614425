"""What an experiment file says: TOML in, checked sections out, and back."""

from leanfleet.experiment.sections import (
    DataSection,
    Experiment,
    FleetSection,
    GeneralSection,
    MethodSection,
    NetworkSection,
    TrainingSection,
)
from leanfleet.experiment.toml import dumps, load, loads, override

__all__ = [
    "DataSection",
    "Experiment",
    "FleetSection",
    "GeneralSection",
    "MethodSection",
    "NetworkSection",
    "TrainingSection",
    "dumps",
    "load",
    "loads",
    "override",
]
