"""What links do to messages in the simulation: lose them, deliver them late or twice; and who is away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from leanfleet.experiment import GossipFleet
from leanfleet.randomness import numpy_generator


class Arrival(NamedTuple):
    """A message that arrives.

    Attributes:
        exchange: At the end of which exchange, counted from 0.
        sender: Who sent it.
        receiver: Who gets it.
    """

    exchange: int
    sender: int
    receiver: int


class Links:
    """Decides by (seed, exchange, link) alone, so that workers and resumed runs see the same.

    Args:
        fleet: What links are like.
        seed: Seed of the run.
    """

    def __init__(self, fleet: GossipFleet, seed: int) -> None:
        self._fleet, self._seed = fleet, seed

    @property
    def perfect(self) -> bool:
        """Whether every message arrives once and in time."""
        f = self._fleet
        return not (f.loss_rate or f.late_rate or f.double_rate or f.cuts or f.absences)

    def away(self, node: int, exchange: int) -> bool:
        """Return whether a node does nothing in an exchange."""
        return any(
            who == node and first <= exchange and (last == -1 or exchange <= last)
            for who, first, last in self._fleet.absences
        )

    def arrivals(self, exchange: int, links: Iterable[tuple[int, int]]) -> list[Arrival]:
        """Return when messages over links, (sender, receiver), arrive; those that are lost are not among them."""
        found = []
        for sender, receiver in links:
            if self.perfect:
                found.append(Arrival(exchange, sender, receiver))
                continue
            at = self._at(exchange, sender, receiver)
            # Who is away when a message comes does not get it.
            found += [Arrival(k, sender, receiver) for k in at if not self.away(receiver, k)]
        return found

    def _at(self, exchange: int, sender: int, receiver: int) -> list[int]:
        f = self._fleet
        if any(a == sender and b == receiver and first <= exchange <= last for a, b, first, last in f.cuts):
            return []
        draw, again = numpy_generator(self._seed, exchange, sender, receiver, "link").random(2)
        if draw < f.loss_rate:
            return []
        first = exchange + 1 if draw < f.loss_rate + f.late_rate else exchange
        return [first, first + 1] if again < f.double_rate else [first]
