"""Devices: what they can spend over time, the clock that reckons it, and the pacer that stays within it."""

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
from leanfleet.fleet.pacer import Pacer
from leanfleet.fleet.traces import Trace, load_traces

__all__ = [
    "Availability",
    "AvailabilityConfig",
    "Clock",
    "Constant",
    "Exponential",
    "Pacer",
    "RateBounds",
    "Trace",
    "VirtualClock",
    "availability",
    "integral",
    "load_traces",
    "rate_bounds",
    "uniform",
]
