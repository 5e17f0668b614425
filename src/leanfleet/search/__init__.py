"""Design space exploration: Pareto-optimal dropout vectors, found once for a network (Rapp et al. 2022, "DSE")."""

from leanfleet.search.objectives import Scale, hypervolume
from leanfleet.search.protocols import FAST, PAPER, PROTOCOLS, Protocol
from leanfleet.search.run import OPTIMISER, search
from leanfleet.search.trainings import Progress

__all__ = [
    "FAST",
    "OPTIMISER",
    "PAPER",
    "PROTOCOLS",
    "Progress",
    "Protocol",
    "Scale",
    "hypervolume",
    "search",
]
