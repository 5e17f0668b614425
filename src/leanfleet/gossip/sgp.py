"""Stochastic gradient push, SGP (Assran et al. 2019): everything is sent, over any connected directed graph."""

from __future__ import annotations

from leanfleet.gossip.method import GossipMethod, check_links, running_sums
from leanfleet.gossip.options import PushSumOptions
from leanfleet.gossip.rules import Rule, Whole
from leanfleet.gossip.sums import RunningSums


class SGP(GossipMethod[PushSumOptions]):
    """x <- sum p_ij (x_j - lr g_j(z_j)), w <- sum p_ij w_j, z = x / w."""

    name = "sgp"
    Options = PushSumOptions

    def check(self) -> None:
        """See `GossipMethod.check`."""
        super().check()
        check_links(self, self.options)

    def rule(self) -> Rule:
        """See `GossipMethod.rule`."""
        return Whole(self.training.layout)

    def running_sums(self) -> RunningSums | None:
        """See `GossipMethod.running_sums`."""
        return running_sums(self, self.options)
