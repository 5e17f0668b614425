"""Devices: what they can spend over time, clock and pacer that reckon it, and the graphs that link them."""

from leanfleet.fleet.availability import (
    Availability,
    AvailabilityConfig,
    Constant,
    Exponential,
    RateBounds,
    availability,
    rate_bounds,
    uniform,
)
from leanfleet.fleet.clock import Clock, VirtualClock, integral
from leanfleet.fleet.consensus import Consensus, consensus, final_rounds, second_eigenvalue
from leanfleet.fleet.graphs import Graph, check_connected, sequence, shortest_window
from leanfleet.fleet.pacer import Pacer
from leanfleet.fleet.topologies import Topology, build_graph, load_links, parse_graph
from leanfleet.fleet.traces import Trace, load_traces

__all__ = [
    "Availability",
    "AvailabilityConfig",
    "Clock",
    "Consensus",
    "Constant",
    "Exponential",
    "Graph",
    "Pacer",
    "RateBounds",
    "Topology",
    "Trace",
    "VirtualClock",
    "availability",
    "build_graph",
    "check_connected",
    "consensus",
    "final_rounds",
    "integral",
    "load_links",
    "load_traces",
    "parse_graph",
    "rate_bounds",
    "second_eigenvalue",
    "sequence",
    "shortest_window",
    "uniform",
]
