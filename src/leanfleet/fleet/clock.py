"""Clocks: what time it is on a device, and how time passes while the device computes."""

from __future__ import annotations

import math
from typing import Protocol

from leanfleet.fleet.availability import Availability


class Clock(Protocol):
    """Time on one device, in seconds: reckoned in a simulation, measured on a real device."""

    def now(self) -> float:
        """Return the time in seconds, on the same scale as the start of the round."""

    def rate(self) -> float:
        """Return the training MAC/s that the device can spend at this moment."""

    def spend(self, macs: float) -> None:
        """Let the time pass that a step of `macs` training MACs takes."""

    def wait(self) -> None:
        """Let time pass without work until the rate may have changed."""

    def available(self, start: float, end: float) -> float:
        """Return the training MACs that the device could spend between two times."""


class VirtualClock:
    """A clock that integrates a piecewise-constant rate exactly (Rapp et al. 2022, "Problem Statement").

    A change of the rate in the middle of a step alters how fast the step goes on, never the step itself.

    Args:
        availability: Training MAC/s over time, on the global clock of the fleet.
        start: Global time in seconds at which this clock starts.
    """

    def __init__(self, availability: Availability, start: float = 0.0) -> None:
        self._availability = availability
        self._now = start

    def now(self) -> float:
        """Return the global virtual time in seconds; infinite if a step can never end."""
        return self._now

    def rate(self) -> float:
        """Return the training MAC/s at this moment; 0 at infinite time."""
        return self._availability.rate(self._now) if self._now < math.inf else 0.0

    def spend(self, macs: float) -> None:
        """Advance to the time at which `macs` training MACs are done.

        While the rate is zero the step waits for the next change; if none comes, the time is infinite from then
        on.

        Raises:
            ValueError: `macs` is negative or not a number.
        """
        if not macs >= 0:
            raise ValueError(f"a step costs at least 0 MACs, not {macs}")
        while macs > 0 and self._now < math.inf:
            rate, change = self._availability.rate(self._now), self._availability.next_change(self._now)
            room = rate * (change - self._now) if rate > 0 else 0.0
            if macs <= room:
                self._now += macs / rate
                return
            macs -= room
            self._now = change

    def wait(self) -> None:
        """Advance to the next change of the rate; infinite if there is none."""
        self._now = self._availability.next_change(self._now)

    def available(self, start: float, end: float) -> float:
        """Return the training MACs that the device could spend between two finite times."""
        return integral(self._availability, start, end)


def integral(availability: Availability, start: float, end: float) -> float:
    """Return the training MACs available between two finite global times, in seconds.

    Raises:
        ValueError: `end` lies before `start`, or one of them is infinite.
    """
    if not -math.inf < start <= end < math.inf:
        raise ValueError(f"cannot integrate a rate from {start} to {end} seconds")
    macs = 0.0
    while start < end:
        change = min(availability.next_change(start), end)
        macs += availability.rate(start) * (change - start)
        start = change
    return macs
