"""Virtual time in the split family: devices compute, messages travel, the server computes, and all wait for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from leanfleet.engines.job import SplitJob
from leanfleet.errors import ExperimentError
from leanfleet.fleet import VirtualClock


@dataclass
class _Sender:
    arrives: float
    done: float


class Timeline:
    """Where the clock stands, from one barrier to the next.

    Within an iteration clients compute and send at the same time, each at its own rate. The server serves them as
    they arrive, one after the other, at a rate that never changes. A client that needs no reply trains on while its
    activations travel; one that does waits after its forward pass. All numbers but the devices' rates are our
    decisions.

    Args:
        job: What is run.
        now: Where the clock stands.
    """

    def __init__(self, job: SplitJob, now: float) -> None:
        self.now = now
        self._job, self._fleet = job, job.fleet
        self._batch = job.training.batch_size
        self._server_rate = job.fleet.server_speed * job.best_rate
        self._limit = math.inf if job.fleet.iteration_seconds is None else job.fleet.iteration_seconds
        self._finished: dict[int, float] = {}
        self._senders: dict[int, _Sender] = {}

    def alone(self) -> dict[int, int]:
        """Pass a round without the server; return how many steps each client finishes.

        Nobody waits for anybody before the end of the round. Where iterations are limited, so is their sum.
        """
        steps, count = self._job.iterations, len(self._job.parts)
        macs = self._job.method.client_macs(sends=False).training * self._batch
        end = self.now + self._limit * steps
        done = {i: self._steps_until(i, end, macs) if end < math.inf else steps for i in range(count)}
        finished = {i: self._compute(i, self.now, macs * n) for i, n in done.items()}
        self.now = self._checked(end if min(done.values()) < steps else max(finished.values()), finished)
        return done

    def absent(self, clients: Iterable[int], sends: Iterable[int]) -> set[int]:
        """Begin an iteration; return the clients whose own work would not be done within the limit."""
        senders = set(sends)
        self._finished, self._senders = {}, {}
        for i in clients:
            macs = self._job.method.client_macs(sends=i in senders)
            waits = i in senders and self._job.method.listens
            self._finished[i] = self._compute(
                i, self.now, (macs.forward if waits else macs.training) * self._batch
            )
        gone = {i for i, t in self._finished.items() if t > self.now + self._limit}
        for i in gone:
            del self._finished[i]
        return gone

    def late(self, uploads: Mapping[int, int]) -> set[int]:
        """Let activations travel; return the clients whose message arrives past the limit.

        Args:
            uploads: Length of each client's message, in bytes.
        """
        forward = self._job.method.client_macs(sends=True).forward * self._batch
        past = set()
        for i, length in uploads.items():
            sent = self._compute(i, self.now, forward)
            arrives = sent + self._fleet.latency_seconds + length / self._fleet.uplink_bytes_per_s
            if arrives > self.now + self._limit:
                past.add(i)
            else:
                self._senders[i] = _Sender(arrives, arrives)
        return past

    def end(self, served: Iterable[int], replies: Mapping[int, int], missing: bool) -> None:
        """End an iteration: the server serves, replies travel, clients finish.

        Args:
            served: Clients whose activations the server trained on.
            replies: Length of each reply, in bytes.
            missing: Whether a client missed the iteration: then it lasts as long as the limit at least.
        """
        seconds = self._job.method.server_macs().training * self._batch / self._server_rate
        free = self.now
        for i in sorted(served, key=lambda i: (self._senders[i].arrives, i)):
            free = self._senders[i].done = max(free, self._senders[i].arrives) + seconds
        macs = self._job.method.client_macs(sends=True)
        for i, length in replies.items():
            back = (
                self._senders[i].done
                + self._fleet.latency_seconds
                + length / self._fleet.downlink_bytes_per_s
            )
            self._finished[i] = self._compute(i, back, (macs.training - macs.forward) * self._batch)
        last = max([self.now, free, *self._finished.values(), *(s.arrives for s in self._senders.values())])
        self.now = self._checked(max(last, self.now + self._limit) if missing else last, self._finished)

    def relay(self, length: int) -> None:
        """Let messages of this length travel from clients to the server, and as many back."""
        fleet = self._fleet
        self.now += 2 * fleet.latency_seconds
        self.now += length / fleet.uplink_bytes_per_s + length / fleet.downlink_bytes_per_s

    def spent(self, client: int) -> float:
        """Return the training MACs that a client can spend until the limit, from now on."""
        clock = VirtualClock(self._job.means(client), self.now)
        return clock.available(self.now, self.now + self._limit)

    def _compute(self, client: int, start: float, macs: float) -> float:
        if start == math.inf:
            return math.inf
        clock = VirtualClock(self._job.means(client), start)
        clock.spend(macs)
        return clock.now()

    def _steps_until(self, client: int, end: float, macs: float) -> int:
        available = VirtualClock(self._job.means(client), self.now).available(self.now, end)
        most = self._job.iterations
        return most if macs == 0 else min(most, math.floor(available / macs * (1 + 1e-9)))

    def _checked(self, end: float, finished: Mapping[int, float]) -> float:
        if end < math.inf:
            return end
        slowest = max(finished, key=lambda i: finished[i])
        raise ExperimentError(
            f"device {slowest} is never done: its trace ends at rate 0, and all wait for it; set [fleet] "
            "iteration_seconds, so that they do not"
        )
