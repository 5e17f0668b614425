"""DeepSqueeze (Tang et al. 2019): compressed models with error memory, without push-sum weights."""

from __future__ import annotations

from leanfleet.gossip.method import Compressing
from leanfleet.gossip.options import CompressionOptions
from leanfleet.gossip.rules import ErrorMemory, Rule


class DeepSqueeze(Compressing[CompressionOptions]):
    """Sparse-Push with w = 1, on graphs whose P is doubly stochastic."""

    name = "deepsqueeze"
    Options = CompressionOptions
    weighted = False

    def rule(self) -> Rule:
        """See `GossipMethod.rule`."""
        return ErrorMemory(self.training.layout, self.options.build(), self.eta)
