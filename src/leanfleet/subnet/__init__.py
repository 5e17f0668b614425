"""The part of a network that one mini-batch trains: channel groups, kept sets, packing, MACs, LUT."""

from leanfleet.subnet.counts import ChannelGroup, grid
from leanfleet.subnet.kept import Kept
from leanfleet.subnet.plan import SubnetPlan

__all__ = ["ChannelGroup", "Kept", "SubnetPlan", "grid"]
