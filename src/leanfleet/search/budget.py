"""Time of a search: what is spent, what is left, what a short training takes."""

from __future__ import annotations

import time

# Machines change speed, and the first trainings compile: what was measured last counts most.
_FORGET = 0.5
_UNKNOWN_SECONDS = 1.0


class Budget:
    """Seconds spent over all parts of a search, and what they leave.

    Args:
        begun: `time.monotonic()` when this part began.
        before: Seconds of earlier parts.
        seconds: For everything; None without a limit.
    """

    def __init__(self, begun: float, before: float, seconds: float | None) -> None:
        self._begun, self._before = begun, before
        self.seconds = float("inf") if seconds is None else seconds
        self._seconds, self._trials = 0.0, 0.0

    @property
    def spent(self) -> float:
        """Seconds spent."""
        return self._before + time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds left, at least 0; infinite without a limit."""
        return max(0.0, self.seconds - self.spent)

    def took(self, trials: int, seconds: float) -> None:
        """Take note of what short trainings took, all workers together."""
        self._seconds = (1 - _FORGET) * self._seconds + seconds
        self._trials = (1 - _FORGET) * self._trials + trials

    @property
    def seconds_per_trial(self) -> float:
        """What a short training takes: measured in this process, as a search may go on on another machine."""
        return self._seconds / self._trials if self._trials else _UNKNOWN_SECONDS

    def trials(self, reserve: float = 0.0) -> float:
        """Return how many short trainings fit into what is left beside a reserve of seconds."""
        return max(0.0, self.left - reserve) / self.seconds_per_trial
