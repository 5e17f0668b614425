"""A device measures itself: a short calibration, then every step against what was predicted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from leanfleet.engines.flower.caps import Caps
from leanfleet.engines.job import FederatedJob
from leanfleet.federated.step import Local, Step
from leanfleet.ledger import PHI
from leanfleet.randomness import torch_generator

_RATES = (0.0, 0.25, 0.5)
_WARM_UP, _REPEATS = 3, 5

# Rapp et al. 2022 leave measuring open; the figures are our decisions.
_ALPHA = 0.3
_JUMP = 2.0


@dataclass(frozen=True)
class Profile:
    """Seconds of a training step on this device: ratio * (offset + slope * MACs).

    Attributes:
        offset_seconds: What a step takes however narrow it is.
        seconds_per_mac: What each training MAC adds.
        whole_macs: Training MACs of a whole network's step.
        ratio: Measured over predicted, an exponentially weighted mean.
        astray: Whether the last step was off by more than a factor of 2.
    """

    offset_seconds: float
    seconds_per_mac: float
    whole_macs: float
    ratio: float = 1.0
    astray: bool = False

    def seconds(self, macs: float) -> float:
        """Return the predicted seconds of a step of so many training MACs."""
        return self.ratio * (self.offset_seconds + self.seconds_per_mac * macs)

    def rate(self, macs: float) -> float:
        """Return the training MAC/s of steps of so many training MACs."""
        return macs / self.seconds(macs)

    @property
    def whole_rate(self) -> float:
        """The training MAC/s of the whole network's steps."""
        return self.rate(self.whole_macs)

    def learn(self, macs: float, seconds: float) -> Profile:
        """Return the profile after a step; one that is far off counts only if the next one is too, then alone."""
        off = seconds / self.seconds(macs)
        if not 1 / _JUMP <= off <= _JUMP:
            return replace(self, ratio=self.ratio * (off if self.astray else 1.0), astray=not self.astray)
        return replace(self, ratio=self.ratio * (1 - _ALPHA + _ALPHA * off), astray=False)

    def state(self) -> dict[str, Any]:
        """Return all of it under plain names, for the node's state."""
        return asdict(self)


def calibrate(job: FederatedJob, seconds: float = 10.0) -> Profile:
    """Time steps of the method's network at three widths and fit a line.

    A clock is told MACs and nothing else, so the fit is over MACs. On an already loaded device it is as slow as it is
    then: `Profile.learn` follows.

    Args:
        job: What is trained.
        seconds: When to stop at the latest; the whole network is timed whatever it says.
    """
    plan, begun = job.method.plan, time.monotonic()
    points: list[tuple[float, float]] = []
    for rate in _RATES:
        if points and time.monotonic() - begun > seconds:
            break
        points.append(_timed(job, plan.uniform(rate), begun + seconds))
    offset, slope = _line(points)
    return Profile(offset, slope, points[0][0])


def _timed(job: FederatedJob, rates: Any, end: float) -> tuple[float, float]:
    """Return training MACs and seconds of a step at some rates."""
    plan, training = job.method.plan, job.training
    kept = plan.draw(rates, torch_generator("calibration"))
    x = torch.randn(training.batch_size, *job.data.shape, generator=torch_generator("calibration"))
    batch = (
        x.contiguous(memory_format=torch.channels_last),
        torch.arange(len(x)) % len(job.data.classes),
    )
    params = {name: torch.full(shape, 0.01) for name, shape in plan.parameters.items()}
    local = Local(Step(plan, job.method.setting.optimiser, 1e-6, scale=True), params)
    found = list[float]()
    while len(found) < _WARM_UP + _REPEATS and (len(found) < 2 or time.monotonic() < end):
        before = time.perf_counter()
        local.descend(kept, batch)
        found.append(time.perf_counter() - before)
    settled = found[min(_WARM_UP, len(found) - 1) :]
    return float(PHI * plan.macs_of(kept) * len(x)), statistics.median(settled)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return offset and slope of the best line with neither below 0."""
    m, t = (statistics.fmean(column) for column in zip(*points, strict=True))
    spread = sum((macs - m) ** 2 for macs, _ in points)
    slope = sum((macs - m) * (seconds - t) for macs, seconds in points) / spread if spread else 0.0
    if not 0.0 < slope <= t / m:
        return 0.0, t / m
    return t - slope * m, slope


class MeasuredClock:
    """A device's real time, in seconds since a message arrived, and its rate as last measured.

    The rate is that of steps like the last one: narrow steps make fewer MACs a second. A pacer that asks for it before
    every step so settles where the predicted time is the time it has.

    Args:
        profile: What is known of the device.
        caps: What its owner allows.
        arrived: When the message arrived, on `now`'s scale.
        now: Monotonic seconds.
        sleep: Lets seconds pass.
    """

    def __init__(
        self,
        profile: Profile,
        caps: Caps,
        arrived: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.profile, self._caps, self._arrived = profile, caps, arrived
        self._now, self._sleep = now, sleep
        self._level, self._first = profile.whole_macs, True
        self._mark = now()

    def now(self) -> float:
        """Return the seconds since the message arrived."""
        return self._now() - self._arrived

    def rate(self) -> float:
        """Return the training MAC/s at this moment; 0 while the device may not train."""
        return 0.0 if self._caps.paused() else self.profile.rate(self._level)

    def spend(self, macs: float) -> None:
        """Note that a step has been computed, and rest as long as the share of the CPU asks for."""
        self._sleep((self._now() - self._mark) * (1 / self._caps.duty - 1))
        now = self._now()
        # A process's first step pays for memory and compilation.
        if not self._first and macs > 0:
            self.profile = self.profile.learn(macs, max(now - self._mark, 1e-9))
        self._first, self._mark, self._level = False, now, macs or self._level

    def wait(self) -> None:
        """Wait a second: the device may not train now."""
        self._sleep(1.0)
        self._mark = self._now()

    def available(self, start: float, end: float) -> float:
        """Return the training MACs between two times at the rate of the moment."""
        return self.profile.rate(self._level) * max(0.0, end - start)

    @property
    def share(self) -> float:
        """The last step's MACs as a share of the whole network's."""
        return self._level / self.profile.whole_macs
