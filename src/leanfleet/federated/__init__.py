"""Federated methods: devices train, a server averages, once a round."""

from typing import Any

from leanfleet.federated.distreal import Distreal
from leanfleet.federated.fedavg import FedAvg
from leanfleet.federated.federated_dropout import FederatedDropout
from leanfleet.federated.method import Method, Optimiser, Options, Report, Setting
from leanfleet.federated.small import Small

METHODS: dict[str, type[Method[Any, Any]]] = {
    method.name: method for method in (Distreal, FedAvg, FederatedDropout, Small)
}
"""Every method by the name it has in an experiment file."""

__all__ = [
    "METHODS", "Distreal", "FedAvg", "FederatedDropout", "Method", "Optimiser", "Options", "Report", "Setting", "Small",
]  # fmt: skip
