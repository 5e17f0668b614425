"""What an experiment file says: TOML in, checked sections out, and back."""

from leanfleet.experiment.families import (
    FederatedFleet,
    FederatedTraining,
    FleetSection,
    GossipFleet,
    GossipTraining,
    SplitFleet,
    SplitTraining,
)
from leanfleet.experiment.methods import METHODS, Family
from leanfleet.experiment.sections import (
    DataSection,
    Experiment,
    GeneralSection,
    MethodSection,
    NetworkSection,
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
    "GossipFleet",
    "GossipTraining",
    "MethodSection",
    "NetworkSection",
    "SplitFleet",
    "SplitTraining",
    "dumps",
    "load",
    "loads",
    "override",
]
