"""Time in the split family on real devices: of those who answered, as reckoned in a simulation or as it passes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from leanfleet.engines.job import SplitJob
from leanfleet.engines.timeline import Alone, Timeline


class AnsweredTime(Timeline):
    """Virtual time, in which a client that has not answered misses its mini-batches."""

    def __init__(self, job: SplitJob) -> None:
        super().__init__(job)
        self._done: Mapping[int, int] = {}
        self._at = 0

    def begin(self) -> None:
        """Let what has passed until now not count."""

    def take(self, done: Mapping[int, int]) -> None:
        """Begin mini-batches of which each client has done so many, from the first one on."""
        self._done, self._at = done, 0

    def alone(self) -> dict[int, Alone]:
        """See `Timeline.alone`."""
        return {i: alone if i in self._done else Alone(0, 0.0) for i, alone in super().alone().items()}

    def absent(self, clients: Iterable[int], sends: Iterable[int]) -> set[int]:
        """See `Timeline.absent`."""
        there = [i for i in clients if self._done.get(i, 0) > self._at]
        return set(clients) - set(there) | super().absent(there, sends)

    def end(self, served: Iterable[int], replies: Mapping[int, int]) -> None:
        """See `Timeline.end`."""
        super().end(served, replies)
        self._at += 1

    def spent(self, client: int) -> float:
        """Return 0: what the absent have spent is booked when they answer."""
        return 0.0


class RealTime(AnsweredTime):
    """The server's own clock."""

    def __init__(self, job: SplitJob) -> None:
        super().__init__(job)
        self._mark = time.monotonic()

    def begin(self) -> None:
        """See `AnsweredTime.begin`."""
        self._mark = time.monotonic()

    def alone(self) -> dict[int, Alone]:
        """Return what clients did; nobody else is waited for."""
        self._pass()
        macs = self._method.client_macs(sends=False).training * self._batch
        done = {i: self._done.get(i, 0) for i in range(self._job.devices)}
        return {i: Alone(steps, macs * steps) for i, steps in done.items()}

    def absent(self, clients: Iterable[int], sends: Iterable[int]) -> set[int]:
        """Return the clients that have not done the mini-batch."""
        return {i for i in clients if self._done.get(i, 0) <= self._at}

    def late(self, uploads: Mapping[int, int]) -> set[int]:
        """Return nobody: what is here is in time."""
        return set()

    def end(self, served: Iterable[int], replies: Mapping[int, int]) -> None:
        """Let the clock show what it is."""
        self._at += 1
        self._pass()

    def _pass(self) -> None:
        now = time.monotonic()
        self.now += now - self._mark
        self._mark = now
