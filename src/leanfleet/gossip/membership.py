"""Nodes that join, leave in order, or crash: who gets their mass, and a ledger of all of it (our decision).

x and w of a node always go together, so the others' ratios stay right whatever happens to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from leanfleet.gossip.node import Node
from leanfleet.wire import Message

Farewell = Literal["handover", "withdraw"]
Carry = Callable[[int, int, Message], Message]
"""(sender, receiver, message) -> the message as it arrives; none is lost."""


@dataclass
class MassLedger:
    """All changes of the total push-sum weight; the sum over nodes and links must always be `total`.

    Attributes:
        total: Weight that there should be.
        entries: (iteration, what happened, change).
    """

    total: float
    entries: list[tuple[int, str, float]] = field(default_factory=list)

    def book(self, iteration: int, what: str, change: float) -> None:
        """Take note of a change."""
        self.total += change
        self.entries.append((iteration, what, change))


def join(newcomer: Node, sponsor: Node, *, split: bool = False) -> float:
    """Let a node begin with the model of another; return by how much the total weight grows.

    It is to be new: without error memory, momentum or sums. Its neighbours `welcome` it.

    Args:
        newcomer: Who joins.
        sponsor: Whose model it takes.
        split: Whether the sponsor hands over half of its mass, so that exact averages stay as they are, instead of
            the newcomer bringing a weight of 1.
    """
    if split:
        sponsor.x.div_(2)
        sponsor.weight /= 2
    newcomer.x.copy_(sponsor.x if split else sponsor.z())
    newcomer.weight = sponsor.weight if split else 1.0
    for name, tensor in newcomer.others.items():
        tensor.copy_(sponsor.others[name])
    return 0.0 if split else 1.0


def _by_hand(sender: int, receiver: int, message: Message) -> Message:
    return message


def leave(
    leaver: Node,
    senders: Iterable[Node],
    receivers: Iterable[Node],
    how: Farewell = "handover",
    carry: Carry = _by_hand,
) -> float:
    """Let a node leave for good and in order; return the change of the total weight.

    First everything outstanding on its links is delivered, if they keep running sums. Its error memory is dropped.

    Args:
        leaver: Who leaves.
        senders: All that have sent to it.
        receivers: All that it has sent to; the first is its heir.
        how: Whether the heir gets its mass, or nobody; nobody if all receivers have left before.
        carry: How messages travel.
    """
    senders, receivers = list(senders), list(receivers)
    _deliver([(sender, leaver) for sender in senders] + [(leaver, receiver) for receiver in receivers], carry)
    for other in (*senders, *receivers):
        if other.sums is not None:
            other.sums.forget(leaver.number)
    if how == "withdraw" or not receivers:
        return -leaver.weight
    heir = receivers[0]
    will = carry(leaver.number, heir.number, Message({"x": leaver.x}, {"weight": leaver.weight}))
    heir.x.add_(will.tensors["x"])
    heir.weight += float(will.scalars["weight"])
    return 0.0


def _deliver(links: Iterable[tuple[Node, Node]], carry: Carry) -> None:
    """Deliver all that is outstanding, where links keep running sums and anything was ever sent."""
    for sender, receiver in links:
        if sender.sums is not None and receiver.number in sender.sums.out:
            message = carry(sender.number, receiver.number, sender.flush(receiver.number))
            receiver.absorb([(sender.number, message)])


def crash(dead: Node, others: Iterable[Node]) -> float:
    """Return the change of the total weight when a node is gone at once, and what was on its way from it with it.

    What others have sent and do not know to have arrived they will take back, see `Node.take_back`, what it had
    absorbed of that, too. So that much of its weight is not lost.

    Args:
        dead: Who crashed.
        others: All others that have sent to it or that it has sent to.
    """
    lost = dead.weight
    for other in others:
        if dead.sums is None or other.sums is None:
            continue
        if other.number in dead.sums.out:
            lost += dead.sums.outstanding(other.number, other.sums, dead.number)[1]
        if other.sums.asks and dead.number in other.sums.out:
            lost -= other.sums.unconfirmed(dead.number, dead.sums, other.number)
    return -lost
