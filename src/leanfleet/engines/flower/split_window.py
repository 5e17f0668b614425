"""What clients of the split family sent for some mini-batches, checked, and heard as if it had come one by one."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from leanfleet.engines.center import as_bytes
from leanfleet.engines.flower.fleet import Node
from leanfleet.engines.flower.messages import MOST, Stint, Worked
from leanfleet.engines.job import SplitJob
from leanfleet.errors import WireError
from leanfleet.randomness import torch_generator
from leanfleet.wire import Message, Scalar, decode, describe

_VALUE_BYTES, _LABEL_BYTES, _HEADER_BYTES = 4, 4, 4096


class Brought(NamedTuple):
    """What a client's answer holds.

    Attributes:
        ups: Its activations with labels, encoded as by the simulation's clients, by mini-batch.
        losses: Its local losses, if it has any.
        authors: Bytes in the authors' way of counting, by mini-batch.
        state: Its state, if it was asked for.
        state_bytes: The length of that, as encoded.
    """

    ups: dict[int, Tensor]
    losses: list[float]
    authors: list[int]
    state: dict[str, Tensor]
    state_bytes: int


class Reader:
    """Reads clients' answers, and believes nothing.

    Args:
        job: What is run.
    """

    def __init__(self, job: SplitJob) -> None:
        self._job, setting = job, job.method.setting
        self._values = setting.batch_size * setting.cut.values
        client = job.method.client()
        start = describe(client.tensors())
        with torch.random.fork_rng(devices=[]):
            client.step(*_batch(job), sends=False)
        # Moments are there from the first step on.
        self._layouts = start, describe(client.tensors())

    def read(self, stint: Stint, worked: Worked, up: bytes) -> Brought:
        """Return what an answer holds.

        Args:
            stint: What the client was asked for.
            worked: What it says that it did.
            up: What it sent.

        Raises:
            WireError: It holds anything else, too.
        """
        count = worked.steps
        if count > stint.last - stint.first:
            raise WireError(f"claims {count} steps where {stint.last - stint.first} were asked for")
        numbers = range(stint.first, stint.first + count) if stint.sends else range(0)
        lengths = {"losses": (torch.float64, count if self._job.method.learns_alone else 0)}
        lengths |= {"authors": (torch.int64, count), "state": (torch.uint8, -1)}
        lengths |= {str(number): (torch.uint8, -1) for number in numbers}
        expected = {name: (dtype, (length,)) for name, (dtype, length) in lengths.items()}
        tensors = decode(up, expected, {}, self._most(len(numbers))).tensors
        authors = tensors["authors"]
        if count and not 0 <= int(authors.min()) <= int(authors.max()) <= _VALUE_BYTES * self._values:
            raise WireError(f"claims {int(authors.max())} bytes of activations")
        if len(tensors["losses"]) and float(tensors["losses"].abs().max()) > MOST:
            raise WireError("claims a loss beyond all numbers")
        state = as_bytes(tensors["state"])
        return Brought(
            {number: tensors[str(number)] for number in numbers},
            tensors["losses"].tolist(),
            authors.tolist(),
            self._state(state) if stint.returns else {},
            len(state),
        )

    def _most(self, batches: int) -> int:
        """Return the most bytes that so many mini-batches and a state can take."""
        state = sum(dtype.itemsize * math.prod(shape) for dtype, shape in self._layouts[1].values())
        # A mask of bits may go with the values.
        batch = (_VALUE_BYTES + 1) * self._values + _LABEL_BYTES * self._job.training.batch_size
        return state + batches * (batch + _HEADER_BYTES) + _HEADER_BYTES * (1 + len(self._layouts[1]))

    def _state(self, data: bytes) -> dict[str, Tensor]:
        try:
            return decode(data, self._layouts[0], {}).tensors
        except WireError:
            return decode(data, self._layouts[1], {}).tensors


@dataclass
class Window:
    """Mini-batches that are being asked for, and what has come of them.

    Attributes:
        round: The round, from 0.
        first: The first mini-batch of the round that is meant.
        last: The first that is not.
        began: When, in monotonic seconds.
        asked: Who is at work.
        brought: What has come.
        rubbish: Clients of which something could not be used.
    """

    round: int
    first: int
    last: int
    began: float = field(default_factory=time.monotonic)
    asked: dict[int, Node] = field(default_factory=dict)
    brought: dict[int, Brought] = field(default_factory=dict)
    rubbish: set[int] = field(default_factory=set)

    def waiting(self) -> bool:
        """Return whether an answer may yet come."""
        return any(i not in self.brought and node.state == "training" for i, node in self.asked.items())

    def missing(self) -> list[int]:
        """Return the clients that have not answered."""
        return [i for i in self.asked if i not in self.brought and i not in self.rubbish]

    def done(self) -> dict[int, int]:
        """Return how many mini-batches each client has done."""
        return {i: len(brought.authors) for i, brought in self.brought.items()}

    def answer(self, asked: Message) -> Message:
        """Answer what the simulation's centre asks of its workers: to let clients train."""
        if asked.scalars["task"] == "alone":
            return Message({}, {"losses": json.dumps({i: b.losses for i, b in self.brought.items()})})
        present, sends = (json.loads(str(asked.scalars[key])) for key in ("clients", "sends"))
        iteration = int(asked.scalars["iteration"])
        at = iteration - self.first
        losses = {i: self.brought[i].losses[at] for i in present if self.brought[i].losses}
        authors = sum(self.brought[i].authors[at] for i in present)
        ups = {str(i): self.brought[i].ups[iteration] for i in sends}
        told: dict[str, Scalar] = {"authors": authors, "unfit": "{}", "handed": 0}
        return Message(ups, {**told, "losses": json.dumps(losses)})


def _batch(job: SplitJob) -> tuple[Tensor, Tensor]:
    size = job.training.batch_size
    x = torch.randn(size, *job.data.shape, generator=torch_generator("template"))
    return x, torch.arange(size) % len(job.data.classes)
