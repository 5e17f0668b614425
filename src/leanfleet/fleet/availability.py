"""What a device can spend on training over time: a piecewise-constant rate in training MAC/s.

Rates may be asked for any time in any order, and depend on nothing but the time and the key (seed, device): a
worker process, a resumed run and another method all see the same trace. Traces run on the global clock, across
rounds.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

from leanfleet.errors import ExperimentError, did_you_mean
from leanfleet.fleet.traces import Trace, load_traces
from leanfleet.ledger import PHI
from leanfleet.randomness import numpy_generator

Kind = Literal["constant", "uniform", "exponential", "trace"]

_CHANGES_PER_BLOCK = 16
_CACHED_BLOCKS = 4


class Availability(Protocol):
    """Training MAC/s of one device over time, in seconds from 0; constant between two changes."""

    def rate(self, t: float) -> float:
        """Return the training MAC/s at time `t`, a change at `t` itself included."""

    def next_change(self, t: float) -> float:
        """Return the time of the first change strictly after `t`; infinite if there is none."""


@dataclass(frozen=True)
class Constant:
    """A rate that never changes."""

    rate_macs_per_s: float

    def rate(self, t: float) -> float:
        """Return the one rate."""
        return self.rate_macs_per_s

    def next_change(self, t: float) -> float:
        """Return infinity."""
        return math.inf


def uniform(low: float, high: float, seed: int, device: int) -> Constant:
    """Return a rate constant in time and uniform in [low, high] across devices.

    It is the start level of `Exponential` with the same key: the limit of no changes at all.
    """
    return Constant(numpy_generator(seed, device, "availability").uniform(low, high))


@dataclass(frozen=True)
class Exponential:
    """Exponential times between changes, at each a new level uniform in [low, high] (Rapp et al. 2022).

    Time is cut into blocks with a random stream each. In a block the number of changes is Poisson and their times
    are uniform, which is the same process and needs no walk from time 0.

    Args:
        low: Lowest level in training MAC/s.
        high: Highest level in training MAC/s.
        changes_per_s: Mean number of changes in a second, above 0.
        seed: Seed of the experiment.
        device: Number of the device.
    """

    low: float
    high: float
    changes_per_s: float
    seed: int
    device: int
    _blocks: dict[int, tuple[list[float], list[float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < math.inf or not 0 < self.changes_per_s < math.inf:
            raise ValueError(f"no such availability: {self}")

    def rate(self, t: float) -> float:
        """Return the training MAC/s at time `t`."""
        number = self._number(t)
        times, levels = self._block(number)
        index = bisect_right(times, t)
        return levels[index - 1] if index else self._level_before(number)

    def next_change(self, t: float) -> float:
        """Return the time of the first change strictly after `t`."""
        number = self._number(t)
        while True:
            times, _ = self._block(number)
            index = bisect_right(times, t)
            if index < len(times):
                return times[index]
            number += 1

    @functools.cached_property
    def _block_seconds(self) -> float:
        # A power of two: the time of a change at the very edge of a block is then exact and in the right block.
        return 2.0 ** round(math.log2(_CHANGES_PER_BLOCK / self.changes_per_s))

    def _number(self, t: float) -> int:
        return max(0, int(t // self._block_seconds))

    def _level_before(self, number: int) -> float:
        """Return the last level of the nearest earlier block in which anything changed."""
        for earlier in range(number - 1, -1, -1):
            _, levels = self._block(earlier)
            if levels:
                return levels[-1]
        return self._start_level

    @functools.cached_property
    def _start_level(self) -> float:
        return uniform(self.low, self.high, self.seed, self.device).rate_macs_per_s

    def _block(self, number: int) -> tuple[list[float], list[float]]:
        """Return the sorted times of a block's changes, and the level that each begins."""
        block = self._blocks.get(number)
        if block is None:
            if len(self._blocks) >= _CACHED_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[number] = self._draw(number)
        return block

    def _draw(self, number: int) -> tuple[list[float], list[float]]:
        generator = numpy_generator(self.seed, self.device, "availability", number)
        count = generator.poisson(self.changes_per_s * self._block_seconds)
        times = (number + generator.random(count)) * self._block_seconds
        return sorted(times.tolist()), generator.uniform(self.low, self.high, count).tolist()


class RateBounds(NamedTuple):
    """The range of a device's rate, in training MAC/s."""

    low: float
    high: float


def rate_bounds(
    *, macs_full: float, macs_half: float, samples: int, round_seconds: float, ratio: float
) -> RateBounds:
    """Return the lowest and the highest rate of a device.

    At the highest the whole network meets the deadline exactly, by the device's own number of samples (our
    decision); the lowest is `1 / ratio` of it (Rapp et al. 2022), but never below what the network costs with
    half of its filters, or the slowest devices would always be late (our decision).

    Args:
        macs_full: Forward MACs per sample of the fleet's reference network, whole.
        macs_half: The same with rate 0.5 everywhere.
        samples: Samples the device processes in a round, over all local epochs.
        round_seconds: Length of a round.
        ratio: Highest over lowest rate.
    """
    high = PHI * macs_full * samples / round_seconds
    return RateBounds(max(1 / ratio, macs_half / macs_full) * high, high)


@dataclass(frozen=True)
class AvailabilityConfig:
    """How the means of a fleet's devices vary.

    Attributes:
        kind: `constant`: every device at its highest rate. `uniform`: constant in time, differing across
            devices. `exponential`: changing over time. `trace`: recorded.
        ratio: Highest over lowest rate of a device, at least 1.
        changes_per_round: Mean number of changes in a round (lambda), at least 0; for `exponential`.
        round_seconds: Length of a round, in virtual seconds.
        trace: The CSV file of kind `trace`.

    Raises:
        ExperimentError: A value is out of range.
    """

    kind: Kind = "uniform"
    ratio: float = 4.0
    changes_per_round: float = 1.0
    round_seconds: float = 1.0
    trace: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ExperimentError(
                f"availability '{self.kind}' is unknown{did_you_mean(self.kind, get_args(Kind))}"
            )
        if not 1 <= self.ratio < math.inf:
            raise ExperimentError(f"availability: ratio must be at least 1, not {self.ratio}")
        if not 0 <= self.changes_per_round < math.inf:
            raise ExperimentError(
                f"availability: changes_per_round must be at least 0, not {self.changes_per_round}"
            )
        if not 0 < self.round_seconds < math.inf:
            raise ExperimentError(f"availability: round_seconds must be above 0, not {self.round_seconds}")
        if (self.kind == "trace") != (self.trace is not None):
            raise ExperimentError(
                "availability: kind 'trace' needs a trace file, and no other kind takes one"
            )


def availability(
    config: AvailabilityConfig, *, macs_full: float, macs_half: float, samples: int, seed: int, device: int
) -> Availability:
    """Return the availability of one device.

    Recorded devices are used again from the first when the fleet is larger than the file.

    Args:
        config: How the means of the fleet vary.
        macs_full: Forward MACs per sample of the fleet's reference network, whole; the same for every method.
        macs_half: The same with rate 0.5 everywhere.
        samples: Samples the device processes in a round, over all local epochs.
        seed: Seed of the experiment.
        device: Number of the device, from 0.

    Raises:
        DataError: The trace file cannot be read.
    """
    low, high = rate_bounds(
        macs_full=macs_full,
        macs_half=macs_half,
        samples=samples,
        round_seconds=config.round_seconds,
        ratio=config.ratio,
    )
    if config.kind == "constant":
        return Constant(high)
    if config.trace is not None:
        traces = _traces(config.trace)
        return traces[device % len(traces)].scaled(high)
    if config.kind == "uniform" or config.changes_per_round == 0:
        return uniform(low, high, seed, device)
    return Exponential(low, high, config.changes_per_round / config.round_seconds, seed, device)


@functools.lru_cache(maxsize=1)
def _traces(path: Path) -> list[Trace]:
    # The factory is called for each of thousands of devices; the file is read once.
    return load_traces(path)
