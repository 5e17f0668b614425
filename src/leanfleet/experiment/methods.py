"""All methods of all families, by the names they have in an experiment file."""

from __future__ import annotations

from typing import Any, Final, Literal

from leanfleet import federated, gossip, split

Family = Literal["federated", "split", "gossip"]
AnyMethod = federated.Method[Any, Any] | split.SplitMethod[Any] | gossip.GossipMethod[Any]

METHODS: Final[dict[str, type[AnyMethod]]] = {**federated.METHODS, **split.METHODS, **gossip.METHODS}
"""Every method by the name it has in an experiment file."""
