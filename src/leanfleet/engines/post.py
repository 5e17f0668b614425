"""The simulation's post office: what a message costs, when it comes, and every node's clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from leanfleet.engines.job import GossipJob
from leanfleet.engines.links import Links
from leanfleet.errors import ExperimentError
from leanfleet.fleet import VirtualClock

Receivers = Mapping[str, Sequence[int]]
"""To whom each message goes, by its name: `sender/number`."""


class Letter(NamedTuple):
    """A message for one receiver.

    Attributes:
        receiver: Who gets it.
        name: Begins with the sender's number; no two messages on their way have the same.
        message: As encoded.
    """

    receiver: int
    name: str
    message: Tensor


class Post:
    """Keeps the clocks of all nodes, and the messages that are still on their way.

    A node waits for what its in-neighbours send and for nothing else. What is lost or late is waited for like any
    other: nobody can know. A node has one uplink: its messages go out one after the other, and one that several get
    goes out once for each of them, unless it is a broadcast. It does not wait for that itself, but its next messages
    do.

    Args:
        job: What is run.
        links: What becomes of messages.
    """

    def __init__(self, job: GossipJob, links: Links) -> None:
        self.job, self.links, self.fleet = job, links, job.fleet
        self.times = [0.0] * len(job.parts)
        self._uplink_free = [0.0] * len(job.parts)
        self._late: dict[int, list[Letter]] = {}

    @property
    def now(self) -> float:
        """Virtual time: that of the last node."""
        return max(self.times)

    def compute(self, nodes: Iterable[int], macs: float) -> None:
        """Let the clocks of some nodes go on while they spend training MACs.

        Raises:
            ExperimentError: One of them is never done.
        """
        for i in nodes:
            clock = VirtualClock(self.job.means(i), self.times[i])
            clock.spend(macs)
            if not math.isfinite(clock.now()):
                raise ExperimentError(
                    f"node {i} is never done: its trace ends at rate 0, and its neighbours wait for it; "
                    "[fleet] absences lets a node be away"
                )
            self.times[i] = clock.now()

    def send(self, messages: Mapping[str, Tensor], receivers: Receivers) -> list[int]:
        """Put messages on the uplinks, and let every node wait for its own; return the bytes of all transmissions."""
        arrives, sent = list(self.times), list[int]()
        # In the order of receivers: tensors come from other processes in any order.
        for name, to in receivers.items():
            sender, length = sender_of(name), len(messages[name])
            at = max(self.times[sender], self._uplink_free[sender])
            for number, receiver in enumerate(to):
                if number == 0 or not self.fleet.broadcast:
                    at += length / self.fleet.uplink_bytes_per_s
                    sent.append(length)
                arrives[receiver] = max(arrives[receiver], at + self.fleet.latency_seconds)
            self._uplink_free[sender] = at
        self.times = arrives
        return sent

    def deliver(
        self, exchange: int, messages: Mapping[str, Tensor], receivers: Receivers
    ) -> tuple[list[Letter], int]:
        """Return what arrives with an exchange, the late first, and how many never do; keep what arrives later.

        Args:
            exchange: Its number; rises from call to call.
            messages: What was sent in it.
            receivers: To whom.
        """
        lost = 0
        for name, to in receivers.items():
            arrivals = self.links.arrivals(exchange, [(sender_of(name), receiver) for receiver in to])
            lost += len(to) - len({arrival.receiver for arrival in arrivals})
            for arrival in arrivals:
                letter = Letter(arrival.receiver, f"{name}/{exchange}", messages[name])
                self._late.setdefault(arrival.exchange, []).append(letter)
        # Exchanges may be left out where a budget ends training early.
        due = sorted(number for number in self._late if number <= exchange)
        return [letter for number in due for letter in self._late.pop(number)], lost

    def drop(self, sender: int) -> None:
        """Let what is still on its way from a sender never arrive."""
        self._late = {
            exchange: [letter for letter in letters if sender_of(letter.name) != sender]
            for exchange, letters in self._late.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the messages that are on their way."""
        return {
            f"{exchange}/{place}/{letter.receiver}/{letter.name}": letter.message
            for exchange, letters in self._late.items()
            for place, letter in enumerate(letters)
        }

    def state(self) -> dict[str, Any]:
        """Return the clocks."""
        return {"times": list(self.times), "uplink_free": list(self._uplink_free)}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.times, self._uplink_free = list(state["times"]), list(state["uplink_free"])
        # In the order in which they were sent: of two messages of one sender the older must be absorbed first.
        for key in sorted(tensors, key=lambda key: [int(part) for part in key.split("/")[:2]]):
            exchange, _, receiver, name = key.split("/", 3)
            self._late.setdefault(int(exchange), []).append(Letter(int(receiver), name, tensors[key]))


def sender_of(name: str) -> int:
    """Return who sent a message, by its name."""
    return int(name.partition("/")[0])
