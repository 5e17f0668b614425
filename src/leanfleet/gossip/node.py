"""A gossip node: it trains, sends, and absorbs what others send; it never knows how messages travel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from leanfleet.errors import LeanfleetError, WireError
from leanfleet.gossip.counters import LEAST_WEIGHT
from leanfleet.gossip.descent import WEIGHT_FLOOR, Training
from leanfleet.gossip.guard import Guard
from leanfleet.gossip.layout import Part
from leanfleet.gossip.messages import Draw, Plain, Sums, packed, read_plain, read_sums, scalars
from leanfleet.gossip.norms import refresh
from leanfleet.gossip.rules import Rule, Whole, load
from leanfleet.gossip.sums import Pushed, RunningSums, same
from leanfleet.randomness import numpy_generator
from leanfleet.wire import Message, Payload, RandomK, Scalar

_ADVICE = ", and on links that lose messages set [method] running_sums = true"


class Node:
    """One node of push-sum with a mixing rule, which expresses every method of the family.

    What is mixed is the numerator x with its weight w (at first 1); what is trained and used is z = x / w. A step of
    the fleet: every node's `step`, then every node's `outbox`, then every node's `absorb`.

    Args:
        number: Which node of the graph it is.
        training: What all nodes have in common.
        rule: What of x is offered, and how it is mixed.
        weighted: Whether there are push-sum weights; else w stays 1.
        sums: Running sums for links that lose messages; None trusts them.
        quasi_global: Whether momentum follows the moves of whole steps, mixing included, instead of local gradients.
        combine_first: Whether a local step is applied after mixing, as in D-PSGD, instead of before.
    """

    def __init__(
        self,
        number: int,
        training: Training,
        rule: Rule,
        *,
        weighted: bool = True,
        sums: RunningSums | None = None,
        quasi_global: bool = False,
        combine_first: bool = False,
    ) -> None:
        self.number, self.training, self.rule = number, training, rule
        self.layout = training.layout
        self.x, self.weight = training.start(), 1.0
        self.others = training.others()
        self.sums = sums
        self.steps = self.exchanges = 0
        self._weighted, self._quasi_global, self._combine_first = weighted, quasi_global, combine_first
        # Positions that are drawn need not travel; messages of before the final phase may come in it.
        self._draws = rule.compressor if isinstance(rule.compressor, RandomK) else None
        self._momentum = self.layout.zeros()
        self._guard = Guard(number, self.z(), _ADVICE if sums is None else "")
        self._merging = False
        # The last local step, until it is mixed: learning rate and direction; whether it waits; x before mixing.
        self._local: tuple[float, Tensor] | None = None
        self._undone = False
        self._before: Tensor | None = None

    def z(self) -> Tensor:
        """Return the de-biased model x / w, a new vector [d]."""
        return self.x / self.weight

    def model(self) -> dict[str, Tensor]:
        """Return the model as it is used: parameters z, statistics, and what is not trained."""
        return {**self.layout.views(self.z()), **self.others}

    @property
    def expects(self) -> dict[str, type]:
        """The scalars that `wire.decode` is to expect of messages to this node; tensors are `messages.TENSORS`."""
        return scalars(weighted=self._weighted, sums=self.sums is not None, draws=self._draws is not None)

    def step(self, inputs: Tensor, labels: Tensor) -> float:
        """Train on one mini-batch: the gradient at z, the step on x, which z sees as lr / w.

        Args:
            inputs: [N, ...].
            labels: [N].

        Returns:
            The loss before the step.

        Raises:
            LeanfleetError: Training has diverged; nothing has been sent of it.
        """
        sgd = self.training.sgd
        rate = sgd.lr_at(self.steps) * self._trust()
        stream = (self.training.seed, self.steps, self.number, "dropout")
        loss, gradient = self.training.gradient(self.z(), self.others, (inputs, labels), stream)
        self._guard.heard(loss, self.steps)
        move = sgd.quasi_global if self._quasi_global else sgd.direction
        self._local = rate, move(gradient, self._momentum)
        self.x.sub_(self._local[1], alpha=rate)
        self.steps += 1
        self._guard.check(self.x, self.weight, self.steps)
        return loss

    def outbox(self, column: Mapping[int, float]) -> dict[int, Message]:
        """Give away shares of the model; return the message to every receiver.

        Where receivers have equal shares and links are trusted, all get the very same message: a broadcast.

        Args:
            column: The weights p_ij of this sender, as `Graph.column` gives them: of its own share and of every
                receiver. They sum to 1.

        Raises:
            WireError: A value is not finite.
            LeanfleetError: A value is too large for running sums: training has diverged.
        """
        shares = self._shares(column)
        if shares and self._combine_first and self._local:
            # Not what the step made of x is mixed, but what was there before; `absorb` takes the step again.
            self.x.add_(self._local[1], alpha=self._local[0])
            self._undone = True
        self._before = self.x.clone() if self._quasi_global and self._local else None
        if not shares:
            return {}
        offer = self.rule.offer(self.x, self._stream(self.exchanges, self.number))
        if self.sums is None:
            given = math.fsum(shares.values())
            messages = self._plain(offer.payloads, shares)
            offer.basis.add_to_(self.x, -given)
            if self._weighted:
                self.weight -= given * self.weight
        else:
            messages = self._running(self.sums, offer.basis, shares)
        self.exchanges += 1
        return messages

    def signs(self, column: Mapping[int, float]) -> dict[int, Message]:
        """Return messages that hold nothing, for receivers that `outbox` has left out because their lease has run out.

        A neighbour that was out of reach for a time hears from them that this node is there, and sends to it again.

        Args:
            column: As for `outbox`.
        """
        sums = self.sums
        if sums is None:
            return {}
        expired = [j for j in sorted(column) if j != self.number and sums.expired(j)]
        return {j: self._sums_message(sums, j, sums.sign(j), drawn=False) for j in expired}

    def absorb(self, messages: Iterable[tuple[int, Message]]) -> None:
        """Take what has arrived, and end the step; to be called when nothing has arrived, too.

        Args:
            messages: (sender, message) in any order; of one sender there may be several.

        Raises:
            WireError: A message is not what such a sender sends; names it. Nothing has changed.
            LeanfleetError: Training has diverged.
        """
        arrived = [
            (sender, self._read(sender, m)) for sender, m in sorted(messages, key=lambda pair: pair[0])
        ]
        self.rule.mix_(self.x, [(one.share, one.part) for _, one in arrived if isinstance(one, Plain)])
        for sender, one in arrived:
            if isinstance(one, Sums):
                self._pull(sender, one)
            elif self._weighted:
                self.weight += one.share * one.weight
        self._finish_local()
        self._guard.check(self.x, self.weight, self.steps)

    def check(self, sender: int, message: Message) -> None:
        """Check a message as `absorb` does.

        Raises:
            WireError: It is not what such a sender sends; names it.
        """
        self._read(sender, message)

    def merge(self, reset_weights: bool = False) -> None:
        """Begin the final phase: from now on everything is sent and mixed at once; do not `step` any more.

        The error memory is dropped: it is no mass, and sending it would blow up what nodes disagree in.

        Args:
            reset_weights: Whether to go on from x = z and w = 1, which preserves the mean of z instead of x's.
        """
        self.rule, self._merging, self._local = Whole(self.layout), True, None
        if reset_weights:
            self.x, self.weight = self.z(), 1.0

    def refresh(self, batches: Iterable[Tensor]) -> None:
        """Take batch norms' statistics anew, over batches of local inputs [N, ...]: the old ones are of old weights."""
        refresh(self.training.net, self.model(), batches)

    def heard(self, neighbour: int, sequence: int) -> None:
        """Take note that an out-neighbour is there, and of the last of this node's messages that it has seen.

        Messages of the neighbour say so by themselves; this is for one-way links with another way back.
        """
        if self.sums is not None:
            self.sums.heard(neighbour, sequence)

    def flush(self, receiver: int) -> Message:
        """Return a message with all that is outstanding on a link, to be delivered without fail.

        Raises:
            LeanfleetError: There are no running sums, so nothing is known to be outstanding.
        """
        sums = self._sums()
        pushed = sums.flush(receiver, self.exchanges)
        self.exchanges += 1
        return self._sums_message(sums, receiver, pushed, drawn=False)

    def take_back(self, receiver: int) -> None:
        """Take back what a receiver that is not there any more is not known to have absorbed.

        Raises:
            LeanfleetError: As for `flush`.
        """
        part, weight = self._sums().take_back(receiver)
        part.add_to_(self.x)
        self.weight += weight

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state between two steps, in place."""
        state = {
            "x": self.x,
            "weight": torch.tensor(self.weight, dtype=torch.float64),
            "momentum": self._momentum,
            "counts": torch.tensor([self.steps, self.exchanges, int(self._merging)]),
            "guard": self._guard.tensor(),
            **{f"rule/{name}": t for name, t in self.rule.tensors().items()},
            **{f"others/{name}": t for name, t in self.others.items()},
        }
        return (
            state if self.sums is None else state | {f"sums/{n}": t for n, t in self.sums.tensors().items()}
        )

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state.

        Raises:
            KeyError: Something is missing.
        """
        steps, exchanges, merging = tensors["counts"].tolist()
        if merging:
            self.merge()
        load({"x": self.x, "momentum": self._momentum}, tensors)
        load(self.rule.tensors(), _named(tensors, "rule/"))
        load(self.others, _named(tensors, "others/"))
        self.steps, self.exchanges, self.weight = steps, exchanges, float(tensors["weight"])
        self._guard.restore(tensors["guard"])
        if self.sums is not None:
            self.sums.restore(_named(tensors, "sums/"))

    def _trust(self) -> float:
        """How much of a local step to take: where mass may be on its way, w is small and the step on z large."""
        return 1.0 if self.sums is None else min(1.0, self.weight / WEIGHT_FLOOR)

    def _shares(self, column: Mapping[int, float]) -> dict[int, float]:
        """Return eta p_ij of every receiver; those whose lease has run out are not there, and all others get more."""
        there = {j: p for j, p in sorted(column.items()) if j == self.number or not self._expired(j)}
        total = math.fsum(there.values()) if len(there) < len(column) else 1.0
        # Who hears nothing for long would otherwise give away all it has. What was sent before can still be repeated.
        eta = 0.0 if self.sums is not None and self.weight < LEAST_WEIGHT else self.rule.eta
        return {j: eta * p / total for j, p in there.items() if j != self.number}

    def _expired(self, receiver: int) -> bool:
        if self.sums is None or not self.sums.expired(receiver):
            return False
        self.take_back(receiver)
        return True

    def _plain(self, payloads: Mapping[str, Payload], shares: Mapping[int, float]) -> dict[int, Message]:
        drawn = self._draws is not None and not self._merging
        data = packed(payloads, drawn)
        told: dict[str, Scalar] = {"step": self.exchanges, **self._told(drawn)}
        if self._weighted:
            told["weight"] = self.weight
        messages = {
            share: Message({"packed": data}, {"share": share, **told}) for share in set(shares.values())
        }
        return {j: messages[share] for j, share in shares.items()}

    def _running(self, sums: RunningSums, basis: Part, shares: Mapping[int, float]) -> dict[int, Message]:
        messages: dict[int, Message] = {}
        made: list[tuple[Pushed, Message]] = []
        weight = self.weight
        for j, share in shares.items():
            try:
                taken, taken_weight, pushed = sums.push(j, basis, share, weight, self.exchanges)
            except OverflowError as error:
                raise self._guard.error(self.steps, str(error)) from error
            taken.add_to_(self.x, -1)
            self.weight -= taken_weight
            # Not where what others may have missed is sent again.
            drawn = self._draws is not None and same(pushed.positions, basis.positions)
            # What has always been the same for several receivers is the same now: a broadcast.
            found = None if sums.asks else next((m for one, m in made if one.equals(pushed)), None)
            messages[j] = found or self._sums_message(sums, j, pushed, drawn)
            made.append((pushed, messages[j]))
        return messages

    def _sums_message(self, sums: RunningSums, receiver: int, pushed: Pushed, drawn: bool) -> Message:
        payloads = self.layout.gather(sums.out[receiver].total, pushed.positions)
        told: dict[str, Scalar] = {
            "step": pushed.sequence,
            "weight": pushed.weight,
            "seen": sums.seen(receiver) if sums.asks else -1,
            **self._told(drawn),
        }
        return Message({"packed": packed(payloads, drawn)}, told)

    def _told(self, drawn: bool) -> dict[str, Scalar]:
        return {} if self._draws is None else {"drawn": drawn}

    def _stream(self, step: int, sender: int) -> np.random.Generator:
        return numpy_generator(self.training.seed, step, sender, "compress")

    def _draw(self, sender: int) -> Draw | None:
        compressor = self._draws
        if compressor is None:
            return None
        return lambda step: self.layout.draw(compressor, self._stream(step, sender))

    def _read(self, sender: int, message: Message) -> Plain | Sums:
        try:
            if self.sums is None:
                return read_plain(self.layout, message, self._weighted, self._draw(sender))
            return read_sums(self.layout, message, self._draw(sender))
        except WireError as error:
            raise WireError(f"node {self.number}, from node {sender}: {error}") from error

    def _pull(self, sender: int, one: Sums) -> None:
        sums = self._sums()
        part, weight = sums.pull(sender, one.pushed, self.weight)
        part.add_to_(self.x)
        self.weight += weight
        sums.heard(sender, one.seen)

    def _finish_local(self) -> None:
        """Take a step again that waited for mixing; let quasi-global momentum follow the whole move."""
        if self._local is None:
            return
        rate, direction = self._local
        self._local = None
        if self._quasi_global and self._before is not None:
            mixed = (self.x - self._before).div_(rate * self.weight)
            decay = self.training.sgd.momentum
            self._momentum.mul_(decay).add_(direction - mixed, alpha=1 - decay)
        if self._undone:
            self.x.sub_(direction, alpha=rate)
            self._undone = False

    def _sums(self) -> RunningSums:
        if self.sums is None:
            raise LeanfleetError(f"node {self.number} has no running sums; set [method] running_sums = true")
        return self.sums


def broadcasts(outbox: Mapping[int, Message]) -> list[tuple[Message, list[int]]]:
    """Return each message once, with all its receivers: what a radio sends once."""
    found: dict[int, tuple[Message, list[int]]] = {}
    for receiver, message in outbox.items():
        found.setdefault(id(message), (message, []))[1].append(receiver)
    return list(found.values())


def memory_ratio(state: Mapping[str, Tensor]) -> float:
    """Return the length of the error memory of a node's state as a multiple of that of x; 0 without one."""
    memory = state.get("rule/memory")
    return 0.0 if memory is None else float(memory.norm() / state["x"].norm())


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
