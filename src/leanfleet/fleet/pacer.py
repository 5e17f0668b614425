"""The pacer: how much compute the coming mini-batch may take if the round is to end in time."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Literal

from leanfleet.fleet.clock import Clock
from leanfleet.ledger import PHI

Rule = Literal["pace", "slot"]

# A device whose work fits its means exactly must not be late by a rounding error.
TOLERANCE = 1e-6


class Pacer:
    """Paces one device through one round of at most `round_seconds` (Rapp et al. 2022, Algorithm 1).

    The paper picks "the vector that suits the availability best" and says that training ends in time, but not
    how. The `slot` rule is the literal reading: every sample gets an equal share of the round, at the rate of the
    moment. The `pace` rule is our decision: the time that is left, less a margin, is shared by the samples that
    are left.

    Budgets speak forward MACs per sample; what is spent speaks training MACs (`PHI` times forward).

    Args:
        clock: The device's clock.
        round_start: Time at which the round started, on the clock's scale.
        round_seconds: Length of the round; its end is the deadline.
        samples: Samples that the device should process in the round, over all local epochs.
        margin: Share of the round that the `pace` rule keeps in reserve.
        rule: `pace` or `slot`.
        deadline: Whether the deadline holds; without it every step is in time.

    Attributes:
        late: Whether work remained undone at the deadline: a step crossed it, or could not be begun for it.
        macs: Training MACs spent so far. Of a step that crossed the deadline only the part before it counts.
        kept: What the last step kept of every channel group; empty before it.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        round_start: float,
        round_seconds: float,
        samples: int,
        margin: float = 0.05,
        rule: Rule = "pace",
        deadline: bool = True,
    ) -> None:
        self._clock = clock
        self._round_start = round_start
        self._round_seconds = round_seconds
        self._samples = samples
        self._samples_left = samples
        self._margin = margin
        self._rule = rule
        self._deadline = deadline
        self.late = False
        self.macs = 0.0
        self.kept: Mapping[str, Sized] = {}

    def budget(self, samples: int, cheapest_macs: float) -> float | None:
        """Return the forward MACs per sample that the coming mini-batch may cost, at least 0.

        Args:
            samples: Samples of the coming mini-batch.
            cheapest_macs: Forward MACs per sample of the cheapest form that the network can take.

        Returns:
            The budget, or None if at the present rate even the cheapest form would end after the deadline: the
            device stops, and is late with the work that remains.
        """
        while self._clock.rate() == 0.0 and self._clock.now() < self._end():
            self._clock.wait()
        if not self.fits(cheapest_macs, samples):
            self.late = True
            return None
        rate = self._clock.rate()
        if self._rule == "slot":
            return rate * self._round_seconds / (PHI * self._samples)
        return rate * self._seconds_left(1 - self._margin) / (PHI * max(self._samples_left, samples))

    def fits(self, macs: float, samples: int) -> bool:
        """Return whether a mini-batch would end by the deadline at the present rate.

        Args:
            macs: Forward MACs per sample.
            samples: Samples of the mini-batch.
        """
        cost = PHI * macs * samples
        return not self._deadline or cost <= self._clock.rate() * self._seconds_left(1 + TOLERANCE)

    def spend(self, macs: float, samples: int, kept: Mapping[str, Sized] | None = None) -> bool:
        """Let the time pass that a step takes, and return whether it ended in time.

        Args:
            macs: Training MACs of the whole mini-batch (`PHI` x forward x samples).
            samples: Samples of the mini-batch.
            kept: See the attribute `kept`.

        Returns:
            False if the step ended after the deadline: its result does not exist and must not be applied.
        """
        begin, self.kept = self._clock.now(), kept or {}
        self._clock.spend(macs)
        self._samples_left -= samples
        in_time = not self._deadline or self._clock.now() <= self._end(1 + TOLERANCE)
        self.late |= not in_time
        self.macs += macs if in_time else self._clock.available(min(begin, self._end()), self._end())
        return in_time

    @property
    def available_macs(self) -> float:
        """Training MACs that the device could have spent between the start of the round and its deadline."""
        return self._clock.available(self._round_start, self._end())

    @property
    def finished_at(self) -> float:
        """Time at which the device finished or stopped; at most the deadline, where that holds."""
        return min(self._clock.now(), self._end()) if self._deadline else self._clock.now()

    def _end(self, share: float = 1.0) -> float:
        return self._round_start + self._round_seconds * share

    def _seconds_left(self, share: float) -> float:
        return max(0.0, self._end(share) - self._clock.now())
