"""Gossip without a server: nodes train on their own data and mix with neighbours, over one-way links if need be."""

from typing import Any

from leanfleet.gossip.choco import Choco
from leanfleet.gossip.deepsqueeze import DeepSqueeze
from leanfleet.gossip.descent import Sgd
from leanfleet.gossip.dpsgd import DPSGD
from leanfleet.gossip.method import GossipMethod, Setting
from leanfleet.gossip.node import Node, broadcasts, memory_ratio
from leanfleet.gossip.options import GossipOptions
from leanfleet.gossip.sgp import SGP
from leanfleet.gossip.sparse_push import SCSP, SparsePush

METHODS: dict[str, type[GossipMethod[Any]]] = {
    method.name: method for method in (SparsePush, SCSP, SGP, DPSGD, DeepSqueeze, Choco)
}
"""Every method by the name it has in an experiment file."""

__all__ = [
    "DPSGD", "METHODS", "SCSP", "SGP", "Choco", "DeepSqueeze", "GossipMethod", "GossipOptions", "Node", "Setting",
    "Sgd", "SparsePush", "broadcasts", "memory_ratio",
]  # fmt: skip
