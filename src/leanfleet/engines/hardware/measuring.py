"""A device measures itself: a short calibration, then every step against what was predicted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.job import FederatedJob
from leanfleet.federated import Distreal
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.profiling import StepTime, Workload, most_bytes
from leanfleet.subnet.lut import Lut

# Rapp et al. 2022 leave measuring open; the figures are our decisions.
_CALIBRATION_SECONDS = 20.0
_ALPHA = 0.3
_JUMP = 2.0
_SHORTEST_SECONDS = 1e-9
_PACKING = 0.01


@dataclass(frozen=True)
class Profile:
    """What a training step takes on this device: `ratio` times what was predicted for its MACs.

    Attributes:
        macs: Training MACs of steps, ascending, from none to the whole network's.
        took: Seconds that each of them takes, as predicted; never falling.
        most_bytes: Memory that a step takes at most, whatever it keeps; 0 where nobody has counted.
        row_bytes: The same of every row of the method's table; empty where there has always been so much room.
        ratio: Measured over predicted, an exponentially weighted mean.
        astray: Whether the last step was off by more than a factor of 2.
    """

    macs: list[float]
    took: list[float]
    most_bytes: int = 0
    row_bytes: list[int] = field(default_factory=list)
    ratio: float = 1.0
    astray: bool = False

    def seconds(self, macs: float) -> float:
        """Return the predicted seconds of a step of so many training MACs."""
        # More than all MACs has a mini-batch that the last samples of an epoch were added to.
        beyond = max(1.0, macs / self.whole_macs)
        return max(self.ratio * beyond * float(np.interp(macs, self.macs, self.took)), _SHORTEST_SECONDS)

    def macs_within(self, seconds: float) -> float:
        """Return the training MACs of the largest step that takes no more than so many seconds, as predicted."""
        beyond = max(1.0, seconds / self.seconds(self.whole_macs))
        return beyond * float(np.interp(seconds / self.ratio, self.took, self.macs))

    @property
    def whole_macs(self) -> float:
        """The training MACs of the whole network's step."""
        return self.macs[-1]

    @property
    def whole_rate(self) -> float:
        """The training MAC/s of the whole network's steps."""
        return self.whole_macs / self.seconds(self.whole_macs)

    def learn(self, macs: float, seconds: float) -> Profile:
        """Return the profile after a step; one that is far off counts only if the next one is too, then alone."""
        off = seconds / self.seconds(macs)
        if not 1 / _JUMP <= off <= _JUMP:
            return replace(self, ratio=self.ratio * (off if self.astray else 1.0), astray=not self.astray)
        return replace(self, ratio=self.ratio * (1 - _ALPHA + _ALPHA * off), astray=False)

    def state(self) -> dict[str, Any]:
        """Return all of it under plain names, for the node's state, which holds no empty lists."""
        return {name: value for name, value in asdict(self).items() if value != []}


def workload(job: FederatedJob) -> Workload:
    """Return what a training step of a method is."""
    plan, optimiser = job.method.plan, job.method.setting.optimiser
    return Workload(plan, optimiser, job.data.shape, len(job.data.classes), job.training.batch_size)


def calibrate(
    job: FederatedJob, room: float = math.inf, duty: float = 1.0, seconds: float = _CALIBRATION_SECONDS
) -> Profile:
    """Time steps of some vectors of dropout rates; predict what each row of the method's table takes.

    On an already loaded device it is as slow as it is then: `Profile.learn` follows.

    Args:
        job: What is trained.
        room: Bytes of memory that a step may take.
        duty: Share of the time in which training may be busy; a calibration takes no rests.
        seconds: When to stop at the latest; two vectors are timed whatever it says.

    Raises:
        MemoryError: There is no room for half of the network.
    """
    work = workload(job)
    fit = StepTime.profile(work, seconds, room)
    method, plan = job.method, job.method.plan
    table = method.lut if isinstance(method, Distreal) else Lut.uniform(plan)
    whole = plan.uniform(0.0)
    # Budgets are MACs: a budget takes what the row takes that is picked for it.
    took = fit(np.array([*(table.pick(row.macs).rates for row in table.rows), whole]))
    # Never more than a larger budget, which is then the one to give.
    took = np.minimum.accumulate(took[::-1])[::-1]
    macs = [PHI * job.training.batch_size * m for m in (*(row.macs for row in table.rows), plan.macs(whole))]
    offset = float(fit.coefficients[0])
    return Profile([0.0, *macs], [offset, *took.tolist()], most_bytes(work), ratio=1 / duty)


class MeasuredClock:
    """A device's real time, in seconds since a message arrived, and its rate as last measured.

    The rate is that of the whole network's steps; what narrower ones take, `MeasuredPacer` knows.

    Args:
        profile: What is known of the device.
        caps: What its owner allows.
        arrived: When the message arrived, on `now`'s scale.
        now: Monotonic seconds.
        sleep: Lets seconds pass.
        busy: Seconds that this process has computed, all threads together.
    """

    def __init__(
        self,
        profile: Profile,
        caps: Caps,
        arrived: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        busy: Callable[[], float] = time.process_time,
    ) -> None:
        self.profile, self._caps, self._arrived = profile, caps, arrived
        self._now, self._sleep, self._busy = now, sleep, busy
        self._first = True
        self._mark, self._busy_mark = now(), busy()

    def now(self) -> float:
        """Return the seconds since the message arrived."""
        return self._now() - self._arrived

    def rate(self) -> float:
        """Return the training MAC/s at this moment; 0 while the device may not train."""
        return 0.0 if self._caps.paused() else self.profile.whole_rate

    def spend(self, macs: float) -> None:
        """Note that a step has been computed, and rest as long as the share of the CPU asks for."""
        # Time in which others had the processor is rest already; so is what a quota of the cgroup has held back.
        computed = (self._busy() - self._busy_mark) / self._caps.threads
        self._sleep(max(0.0, computed / self._caps.duty - (self._now() - self._mark)))
        now = self._now()
        # A process's first step pays for memory and compilation.
        if not self._first and macs > 0:
            self.profile = self.profile.learn(macs, max(now - self._mark, _SHORTEST_SECONDS))
        self._first, self._mark = False, now
        self._busy_mark = self._busy()

    def wait(self) -> None:
        """Wait a second: the device may not train now."""
        self._sleep(1.0)
        self._mark, self._busy_mark = self._now(), self._busy()

    def available(self, start: float, end: float) -> float:
        """Return the training MACs between two times at the rate of the moment."""
        return self.profile.whole_rate * max(0.0, end - start)


class MeasuredPacer(Pacer):
    """A pacer that knows how long a step of each size takes: on a real device not in proportion to its MACs.

    Args:
        clock: The device's clock.
        terms: As `Pacer` takes them.
    """

    def __init__(self, clock: MeasuredClock, **terms: Any) -> None:
        super().__init__(clock, **terms)
        self._measured = clock

    def budget(self, samples: int, cheapest_macs: float) -> float | None:
        """Return the forward MACs per sample of the largest step that fits the time of one; see `Pacer.budget`."""
        found = super().budget(samples, cheapest_macs)
        if found is None:
            return None
        profile = self._measured.profile
        seconds = found * PHI * samples / profile.whole_rate
        return profile.macs_within(seconds) / (PHI * samples)

    def spend(self, macs: float, samples: int, kept: Mapping[str, Sized] | None = None) -> bool:
        """Let a step end, then wait while the device may not take the next one; see `Pacer.spend`."""
        in_time = super().spend(macs, samples, kept)
        while (
            self._samples_left > 0
            and self._clock.rate() == 0.0
            and not (self._deadline and self._clock.now() >= self._end())
        ):
            self._clock.wait()
        return in_time

    def fits(self, macs: float, samples: int) -> bool:
        """Return whether a mini-batch is predicted to end by the deadline; see `Pacer.fits`."""
        if not self._deadline:
            return True
        # What was trained must be packed, too, before it can be sent.
        return self._measured.profile.seconds(PHI * macs * samples) <= self._seconds_left(1 - _PACKING)
