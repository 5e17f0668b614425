"""Push-sum over links that lose, delay and double messages: running sums on every link (our decision).

For each receiver a sender keeps the sum S of all it ever pushed there, and sends S itself; the receiver keeps A,
what it has absorbed, and adds S - A. A doubled message then adds nothing, an old one is ignored, and what was lost
comes with the next one: the weight at once, a coordinate when it is next sent. Nothing is ever lost for good:

    sum over nodes of x + sum over links of (S - A)        is unchanged by mixing, and likewise with w: n.

Costs a vector for each out-neighbour and one for each in-neighbour. With acknowledgements or a lease a second one for
each out-neighbour, and what the messages held that may still be answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from leanfleet.errors import LeanfleetError
from leanfleet.gossip.counters import (
    LEAST_WEIGHT,
    QUANTUM,
    WEIGHT_QUANTUM,
    increments,
    weight_increment,
    weight_wrapped,
    wrapped,
)
from leanfleet.gossip.layout import Layout, Part

Repair = Literal["none", "repeat", "ack"]
"""What else a message repeats of sums that may not have arrived: nothing, what the one before it held, or all that
is not acknowledged (where messages come back)."""

# An acknowledgement of what is sent at a step comes with the step's messages, so two steps later it is late.
_ROUND_TRIP = 2


class Pushed(NamedTuple):
    """Sums as they travel.

    Attributes:
        sequence: Number of the message; rises.
        positions: Which of the sums; None is all.
        values: The sums there, int32 [values].
        weight: The sum of weights.
    """

    sequence: int
    positions: Tensor | None
    values: Tensor
    weight: int

    def equals(self, other: Pushed) -> bool:
        """Return whether another message of the same node holds the same."""
        places = (self.positions is None and other.positions is None) or same(self.positions, other.positions)
        return self.weight == other.weight and places and torch.equal(self.values, other.values)


@dataclass
class Outgoing:
    """What a sender keeps about one receiver.

    Attributes:
        total: S, int32 counters [d].
        weight: Sw.
        known: What the receiver is known to have absorbed, int32 [d]; None where nobody asks.
        known_weight: The same of the weight.
        silent: Messages sent since anything last came back.
        unknown: Messages of which nothing is known yet, by sequence.
        last: Positions of the last message.
    """

    total: Tensor
    known: Tensor | None = None
    weight: int = 0
    known_weight: int = 0
    silent: int = 0
    unknown: dict[int, Pushed] = field(default_factory=dict)
    last: Tensor | None = None

    def acknowledge(self, sequence: int) -> None:
        """Take note that a message has arrived; something has come back, in any case."""
        self.silent = 0
        arrived = self.unknown.pop(sequence, None)
        if arrived is not None and self.known is not None:
            here = slice(None) if arrived.positions is None else arrived.positions
            self.known[here] = arrived.values
            self.known_weight = arrived.weight

    def presume(self, sequence: int) -> None:
        """Take older messages for arrived, too: weights add up over all, and x must not come back without its weight.

        What was lost of them comes with the next message that holds the same positions.
        """
        for number in sorted(number for number in self.unknown if number <= sequence):
            self.acknowledge(number)

    def give_up(self, sequence: int) -> None:
        """Expect no answer to older messages any more."""
        self.unknown = {number: one for number, one in self.unknown.items() if number > sequence}

    def overdue(self, sequence: int) -> Tensor:
        """Return the positions of sums that should have been acknowledged by now, and were not."""
        assert self.known is not None
        late = [number for number in self.unknown if number <= sequence - _ROUND_TRIP]
        parts = [self.unknown.pop(number).positions for number in late]
        differ = (self.total != self.known).nonzero().flatten()
        if any(part is None for part in parts):
            return differ
        places = torch.cat([part for part in parts if part is not None] or [differ[:0]])
        return differ[torch.isin(differ, places)]


@dataclass
class Incoming:
    """What a receiver keeps about one sender.

    Attributes:
        absorbed: A, int32 counters [d].
        weight: Aw.
        sequence: Of the last message.
    """

    absorbed: Tensor
    weight: int = 0
    sequence: int = -1


class RunningSums:
    """All links of one node.

    Args:
        layout: Of the vector.
        repair: What messages repeat.
        lease: How many messages a sender sends without hearing anything of the receiver, before it takes back what
            is not known to have arrived and gives it no more until it hears again; None trusts for ever. Needs a
            way back, however slow.

    Attributes:
        asks: Whether receivers are to say what they have seen.
    """

    def __init__(self, layout: Layout, repair: Repair = "none", lease: int | None = None) -> None:
        self.layout, self.repair, self.lease = layout, repair, lease
        self.asks = repair == "ack" or lease is not None
        self.out: dict[int, Outgoing] = {}
        self.into: dict[int, Incoming] = {}
        self.gone: set[int] = set()

    def expired(self, receiver: int) -> bool:
        """Return whether the lease of a link has run out."""
        return self.lease is not None and self._out(receiver).silent >= self.lease

    def push(
        self, receiver: int, given: Part, share: float, weight: float, sequence: int
    ) -> tuple[Part, float, Pushed]:
        """Add to the sums of a link.

        Args:
            receiver: To whom.
            given: What is offered.
            share: How much of it is for this receiver.
            weight: The node's push-sum weight.
            sequence: Number of the message.

        Returns:
            What the sender is to subtract, exactly, of vector and weight; and what travels.

        Raises:
            OverflowError: A value is too large.
        """
        link = self._out(receiver)
        steps = increments(share * given.values)
        if given.positions is None:
            link.total.copy_(wrapped(link.total.long() + steps))
        else:
            link.total[given.positions] = wrapped(link.total[given.positions].long() + steps)
        weight_steps = weight_increment(share * weight)
        link.weight = weight_wrapped(link.weight + weight_steps)
        taken = Part(given.positions, (steps.double() * QUANTUM).to(given.values.dtype))
        return taken, weight_steps * WEIGHT_QUANTUM, self._pushed(link, given.positions, sequence)

    def flush(self, receiver: int, sequence: int) -> Pushed:
        """Return all sums of a link, so that nothing is outstanding once they have arrived."""
        link = self._out(receiver)
        return Pushed(sequence, None, link.total.clone(), link.weight)

    def sign(self, receiver: int) -> Pushed:
        """Return a message that adds nothing, for a link whose lease has run out: only what is sent can be heard.

        It has the number of the first message, and the sums that the receiver is known to have.
        """
        link = self._out(receiver)
        nowhere = torch.empty(0, dtype=torch.int64, device=self.layout.device)
        return Pushed(0, nowhere, link.total[nowhere], link.weight)

    def pull(self, sender: int, arrived: Pushed, weight: float) -> tuple[Part, float]:
        """Absorb sums; return what they add to vector and weight: nothing if they are old.

        Sums from which much was taken back that had arrived after all may take more than there is: they then count
        as lost, until the sender has given enough again.

        Args:
            sender: Who sent them.
            arrived: The sums.
            weight: The node's push-sum weight.
        """
        if sender not in self.into:
            self.into[sender] = Incoming(self.layout.zeros(torch.int32))
        link = self.into[sender]
        weight_steps = weight_wrapped(arrived.weight - link.weight)
        added = weight_steps * WEIGHT_QUANTUM
        takes_all = added < 0 and weight + added < LEAST_WEIGHT
        if sender in self.gone or arrived.sequence <= link.sequence or takes_all:
            none = torch.empty(0, dtype=torch.int64, device=self.layout.device)
            return Part(none, none.to(self.layout.dtype)), 0.0
        here = slice(None) if arrived.positions is None else arrived.positions
        steps = wrapped(arrived.values.long() - link.absorbed[here].long())
        link.absorbed[here] = arrived.values
        link.weight, link.sequence = arrived.weight, arrived.sequence
        values = (steps.double() * QUANTUM).to(self.layout.dtype)
        return Part(arrived.positions, values), added

    def seen(self, sender: int) -> int:
        """Return the sequence of the last message of a sender; -1 before the first."""
        return self.into[sender].sequence if sender in self.into else -1

    def heard(self, receiver: int, sequence: int) -> None:
        """Take note that a receiver is there, and what it has last seen of this node."""
        if receiver in self.out:
            if self.repair != "ack":
                self.out[receiver].presume(sequence)
            self.out[receiver].acknowledge(sequence)

    def take_back(self, receiver: int) -> tuple[Part, float]:
        """Return what is not known to have arrived, to be added to the sender again; the sums go back, too.

        If it did arrive after all, the next message that arrives takes it away from the receiver again.

        Raises:
            LeanfleetError: Nothing is known of what has arrived.
        """
        link = self._out(receiver)
        if link.known is None:
            raise LeanfleetError(
                f'what node {receiver} has is not known; set [method] repair = "ack", or a lease'
            )
        steps = wrapped(link.total.long() - link.known.long())
        weight_steps = weight_wrapped(link.weight - link.known_weight)
        link.total.copy_(link.known)
        link.weight = link.known_weight
        link.unknown.clear()
        link.last = None
        values = (steps.double() * QUANTUM).to(self.layout.dtype)
        return Part(None, values), weight_steps * WEIGHT_QUANTUM

    def forget(self, neighbour: int) -> None:
        """Drop both links with a neighbour that has left for good; what still arrives from it is ignored."""
        self.out.pop(neighbour, None)
        self.into.pop(neighbour, None)
        self.gone.add(neighbour)

    def welcome(self, neighbour: int) -> None:
        """Begin new links with a neighbour that comes, or comes back with nothing of what it had."""
        self.forget(neighbour)
        self.gone.discard(neighbour)

    def outstanding(self, receiver: int, other: RunningSums, sender: int) -> tuple[Tensor, float]:
        """Return what is on its way to a receiver, S - A and Sw - Aw, given the receiver's own links."""
        sent, into = self._out(receiver), other.into.get(sender) or Incoming(self.layout.zeros(torch.int32))
        steps = wrapped(sent.total.long() - into.absorbed.long())
        return steps.double() * QUANTUM, weight_wrapped(sent.weight - into.weight) * WEIGHT_QUANTUM

    def unconfirmed(self, receiver: int, other: RunningSums, sender: int) -> float:
        """Return the weight that a receiver has absorbed and is not known to have, given the receiver's own links."""
        into = other.into.get(sender)
        absorbed = into.weight if into else 0
        return weight_wrapped(absorbed - self._out(receiver).known_weight) * WEIGHT_QUANTUM

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of all links."""
        state = {"gone": torch.tensor(sorted(self.gone), dtype=torch.int64)}
        for j, out in self.out.items():
            state[f"out/{j}/total"] = out.total
            state[f"out/{j}/counts"] = torch.tensor([out.weight, out.known_weight, out.silent])
            for name, tensor in (("known", out.known), ("last", out.last)):
                if tensor is not None:
                    state[f"out/{j}/{name}"] = tensor
            for number, one in out.unknown.items():
                state |= {f"out/{j}/unknown/{number}/{name}": t for name, t in _tensors(one).items()}
        for j, into in self.into.items():
            state[f"in/{j}/absorbed"] = into.absorbed
            state[f"in/{j}/counts"] = torch.tensor([into.weight, into.sequence])
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state, wherever its tensors are."""
        tensors = {name: t.to(self.layout.device, copy=True) for name, t in tensors.items()}
        self.gone = set(tensors["gone"].tolist())
        self.out.clear()
        self.into.clear()
        for name, tensor in tensors.items():
            match name.split("/"):
                case ["out", j, "counts"]:
                    self.out[int(j)] = self._restored(f"out/{j}/", tensors)
                case ["in", j, "counts"]:
                    weight, sequence = tensor.tolist()
                    self.into[int(j)] = Incoming(tensors[f"in/{j}/absorbed"], weight, sequence)

    def _restored(self, prefix: str, tensors: Mapping[str, Tensor]) -> Outgoing:
        weight, known_weight, silent = tensors[prefix + "counts"].tolist()
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        link = Outgoing(own["total"], own.get("known"), weight, known_weight, silent, last=own.get("last"))
        for name in own:
            match name.split("/"):
                case ["unknown", number, "weight"]:
                    at = f"unknown/{number}/"
                    link.unknown[int(number)] = Pushed(
                        int(number), own.get(at + "positions"), own[at + "values"], int(own[name])
                    )
        return link

    def _out(self, receiver: int) -> Outgoing:
        if receiver not in self.out:
            known = self.layout.zeros(torch.int32) if self.asks else None
            self.out[receiver] = Outgoing(self.layout.zeros(torch.int32), known)
        return self.out[receiver]

    def _pushed(self, link: Outgoing, positions: Tensor | None, sequence: int) -> Pushed:
        link.silent += 1
        now = positions
        if positions is not None and self.repair == "repeat" and link.last is not None:
            positions = torch.unique(torch.cat([positions, link.last]))
        if self.repair == "ack":
            if positions is None:
                # All is sent again, so nobody asks for what was lost before.
                link.give_up(sequence - _ROUND_TRIP)
            else:
                positions = torch.unique(torch.cat([positions, link.overdue(sequence)]))
        link.last = now if self.repair == "repeat" else None
        values = link.total.clone() if positions is None else link.total[positions]
        pushed = Pushed(sequence, positions, values, link.weight)
        if self.asks:
            link.unknown[sequence] = pushed
        return pushed


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether there are two tensors, and equal ones."""
    return one is not None and other is not None and torch.equal(one, other)


def _tensors(pushed: Pushed) -> dict[str, Tensor]:
    found = {"values": pushed.values, "weight": torch.tensor(pushed.weight)}
    return found if pushed.positions is None else found | {"positions": pushed.positions}
