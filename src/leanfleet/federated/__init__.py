"""Federated methods: devices train, a server averages, once a round."""

from typing import Any

from leanfleet.federated.distreal import Distreal
from leanfleet.federated.ensemble import Ensemble
from leanfleet.federated.fedavg import FedAvg
from leanfleet.federated.federated_dropout import FederatedDropout
from leanfleet.federated.fedprox import FedProx
from leanfleet.federated.fedrolex import FedRolex
from leanfleet.federated.fjord import Fjord
from leanfleet.federated.heterofl import HeteroFL
from leanfleet.federated.method import Method, Optimiser, Report, Setting
from leanfleet.federated.small import Small

METHODS: dict[str, type[Method[Any, Any]]] = {
    method.name: method
    for method in (Distreal, FedAvg, FederatedDropout, Small, HeteroFL, Fjord, FedProx, Ensemble, FedRolex)
}
"""Every method by the name it has in an experiment file."""

__all__ = [
    "METHODS", "Distreal", "Ensemble", "FedAvg", "FedProx", "FedRolex", "FederatedDropout", "Fjord", "HeteroFL",
    "Method", "Optimiser", "Report", "Setting", "Small",
]  # fmt: skip
