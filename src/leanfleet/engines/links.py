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
        self._absences: dict[int, list[tuple[int, int]]] = {}
        for node, first, last in fleet.absences:
            self._absences.setdefault(node, []).append((first, last))
        self._cuts: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for sender, receiver, first, last in fleet.cuts:
            self._cuts.setdefault((sender, receiver), []).append((first, last))
        self._rates = fleet.loss_rate or fleet.late_rate or fleet.double_rate

    def away(self, node: int, exchange: int) -> bool:
        """Return whether a node does nothing in an exchange, because it is away for a time or has left for good."""
        return any(
            first <= exchange and (last == -1 or exchange <= last)
            for first, last in self._absences.get(node, ())
        )

    def arrivals(self, exchange: int, links: Iterable[tuple[int, int]]) -> list[Arrival]:
        """Return when messages over links, (sender, receiver), arrive; those that are lost are not among them."""
        return [
            Arrival(at, sender, receiver)
            for sender, receiver in links
            for at in self._at(exchange, sender, receiver)
            # Who is away when a message comes does not get it.
            if not self.away(receiver, at)
        ]

    def _at(self, exchange: int, sender: int, receiver: int) -> list[int]:
        f = self._fleet
        if any(first <= exchange <= last for first, last in self._cuts.get((sender, receiver), ())):
            return []
        if not self._rates:
            return [exchange]
        draw, again = numpy_generator(self._seed, exchange, sender, receiver, "link").random(2)
        if draw < f.loss_rate:
            return []
        first = exchange + 1 if draw < f.loss_rate + f.late_rate else exchange
        return [first, first + 1] if again < f.double_rate else [first]
