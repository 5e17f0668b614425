"""What an experiment file says: TOML in, checked sections out, and back."""

from leanfleet.experiment.methods import METHODS, Family
from leanfleet.experiment.sections import (
    DataSection,
    Experiment,
    FederatedFleet,
    FederatedTraining,
    FleetSection,
    GeneralSection,
    MethodSection,
    NetworkSection,
    SplitFleet,
    SplitTraining,
)
from leanfleet.experiment.toml import dumps, load, loads, override

__all__ = [
    "METHODS",
    "DataSection",
    "Experiment",
    "Family",
    "FederatedFleet",
    "FederatedTraining",
    "FleetSection",
    "GeneralSection",
    "MethodSection",
    "NetworkSection",
    "SplitFleet",
    "SplitTraining",
    "dumps",
    "load",
    "loads",
    "override",
]
