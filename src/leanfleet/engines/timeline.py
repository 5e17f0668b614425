"""Virtual time in the split family: devices compute, messages travel, the server computes, and all wait for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from leanfleet.engines.job import SplitJob
from leanfleet.errors import ExperimentError
from leanfleet.fleet import VirtualClock


class Alone(NamedTuple):
    """What a client did in a round without the server.

    Attributes:
        steps: Steps that it finished.
        macs: Training MACs that it spent, on a last step that was not finished too.
    """

    steps: int
    macs: float


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

    def __init__(self, job: SplitJob, now: float = 0.0) -> None:
        self.now = now
        self._job, self._fleet, self._method = job, job.fleet, job.method
        self._batch = job.training.batch_size
        self._server_rate = job.fleet.server_speed * job.best_rate
        self._limit = math.inf if job.fleet.iteration_seconds is None else job.fleet.iteration_seconds
        # Of the iteration that is going on: when clients are done, and the server with each of them.
        self._finished: dict[int, float] = {}
        self._waiting: set[int] = set()
        self._served: dict[int, float] = {}
        self._missing = False
        self._means = cache(job.means)

    def alone(self) -> dict[int, Alone]:
        """Pass a round without the server; return what each client does.

        Nobody waits for anybody before the end of the round. Where iterations are limited, so is their sum.
        """
        steps, clients = self._job.iterations, range(self._job.devices)
        macs = self._method.client_macs(sends=False).training * self._batch
        end = self.now + self._limit * steps
        done = {i: self._until(i, end, macs) for i in clients}
        finished = {i: self._compute(i, self.now, macs * steps) for i in clients if done[i].steps == steps}
        self.now = self._checked(end if len(finished) < len(clients) else max(finished.values()), finished)
        return done

    def absent(self, clients: Iterable[int], sends: Iterable[int]) -> set[int]:
        """Begin an iteration; return the clients whose own work would not be done within the limit.

        Args:
            clients: Whose turn it is.
            sends: Those of them that send.
        """
        senders = set(sends)
        self._finished, self._served = {}, {}
        self._waiting = senders if self._method.listens else set()
        for i in clients:
            macs = self._method.client_macs(sends=i in senders)
            own = macs.forward if i in self._waiting else macs.training
            self._finished[i] = self._compute(i, self.now, own * self._batch)
        gone = {i for i, t in self._finished.items() if t > self.now + self._limit}
        self._missing = bool(gone)
        self._waiting = self._waiting - gone
        for i in gone:
            del self._finished[i]
        return gone

    def late(self, uploads: Mapping[int, int]) -> set[int]:
        """Let activations travel; return the clients whose message arrives past the limit.

        Args:
            uploads: Length of each client's message, in bytes.
        """
        forward = self._method.client_macs(sends=True).forward * self._batch
        for i, length in uploads.items():
            sent = self._compute(i, self.now, forward)
            arrives = sent + self._fleet.latency_seconds + length / self._fleet.uplink_bytes_per_s
            if arrives <= self.now + self._limit:
                self._served[i] = arrives
        past = set(uploads) - set(self._served)
        self._missing = self._missing or bool(past)
        return past

    def end(self, served: Iterable[int], replies: Mapping[int, int]) -> None:
        """End an iteration: the server serves, replies travel, clients finish.

        If a client missed it, it lasts as long as the limit at least.

        Args:
            served: Clients whose activations the server trained on.
            replies: Length of each reply, in bytes.
        """
        seconds = self._method.server_macs().training * self._batch / self._server_rate
        free = self.now
        for i in sorted(served, key=lambda i: (self._served[i], i)):
            free = self._served[i] = max(free, self._served[i]) + seconds
        for i in self._waiting:
            self._finished[i] = self._answered(i, replies.get(i))
        last = max([self.now, *self._finished.values(), *self._served.values()])
        end = max(last, self.now + self._limit) if self._missing else last
        self.now = self._checked(end, self._finished)

    def relay(self, length: int) -> None:
        """Let messages of this length travel from clients to the server, and as many back."""
        fleet = self._fleet
        self.now += 2 * fleet.latency_seconds
        self.now += length / fleet.uplink_bytes_per_s + length / fleet.downlink_bytes_per_s

    def spent(self, client: int) -> float:
        """Return the training MACs that a client can spend until the limit, from now on."""
        return self._available(client, self.now + self._limit)

    def _answered(self, client: int, length: int | None) -> float:
        """Return when a client that waited is done; without a reply it goes on alone, if it can."""
        macs = self._method.client_macs(sends=True, answered=length is not None)
        if client in self._served:
            # Who was heard in vain is told so in a message of no length.
            travel = self._fleet.latency_seconds + (length or 0) / self._fleet.downlink_bytes_per_s
            back = self._served[client] + travel
        else:
            back = self._finished[client] if self._limit == math.inf else self.now + self._limit
        return self._compute(client, back, (macs.training - macs.forward) * self._batch)

    def _compute(self, client: int, start: float, macs: float) -> float:
        clock = VirtualClock(self._means(client), start)
        clock.spend(macs)
        return clock.now()

    def _available(self, client: int, end: float) -> float:
        return VirtualClock(self._means(client), self.now).available(self.now, end)

    def _until(self, client: int, end: float, macs: float) -> Alone:
        """Return what a client does until a time, in steps of so many MACs each."""
        steps = self._job.iterations
        if macs == 0 or end == math.inf:
            return Alone(steps, macs * steps)
        available = self._available(client, end)
        done = min(steps, math.floor(available / macs * (1 + 1e-9)))
        return Alone(done, min(available, macs * steps))

    def _checked(self, end: float, finished: Mapping[int, float]) -> float:
        if end < math.inf:
            return end
        slowest = max(finished, key=lambda i: finished[i])
        raise ExperimentError(
            f"device {slowest} is never done: its trace ends at rate 0, and all wait for it; set [fleet] "
            "iteration_seconds, so that they do not"
        )
