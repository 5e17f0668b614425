"""CHOCO on push-sum (after Koloskova et al. 2019): compressed differences, over a graph that stays as it is."""

from __future__ import annotations

from leanfleet.errors import ExperimentError
from leanfleet.gossip.method import Compressing
from leanfleet.gossip.options import CompressionOptions
from leanfleet.gossip.rules import Estimates, Rule


class Choco(Compressing[CompressionOptions]):
    """Nodes agree almost exactly, unlike with Sparse-Push; but only on a static graph, and without losses."""

    name = "choco"
    Options = CompressionOptions

    def check(self) -> None:
        """See `GossipMethod.check`."""
        super().check()
        if len(self.setting.graph.phases) > 1:
            raise ExperimentError(
                f"choco on graph '{self.setting.graph.name}': needs the same neighbours at every step; take a static "
                "graph, or sparse-push"
            )

    def rule(self) -> Rule:
        """See `GossipMethod.rule`."""
        return Estimates(self.training.layout, self.options.build(), self.eta)
