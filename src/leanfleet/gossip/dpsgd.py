"""Decentralised parallel SGD, D-PSGD (Lian et al. 2017): weighted means of neighbours, without push-sum weights."""

from __future__ import annotations

from leanfleet.gossip.method import GossipMethod
from leanfleet.gossip.options import GossipOptions
from leanfleet.gossip.rules import Rule, Whole


class DPSGD(GossipMethod[GossipOptions]):
    """x_i <- sum p_ij x_j - lr g_i(x_i): the gradient is that before mixing.

    The paper has undirected graphs with a doubly stochastic P. We let it run on any doubly stochastic P, the
    directed ring for instance, so that methods compare on one graph (our decision).
    """

    name = "d-psgd"
    weighted = False
    combine_first = True

    def rule(self) -> Rule:
        """See `GossipMethod.rule`."""
        return Whole(self.training.layout)
