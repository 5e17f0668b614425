"""What a federated method is: pure steps over (parameters, message); it never knows where it runs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from leanfleet.averaging import HolderSum, WeightedSum
from leanfleet.errors import WireError
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.options import Options
from leanfleet.subnet import SubnetPlan
from leanfleet.wire import Expected, Message, describe

Params = Mapping[str, Tensor]

# A device may add up in another order than the server.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Optimiser:
    """Local SGD and its schedule over the rounds.

    Attributes:
        lr: Learning rate of round 0.
        momentum: Heavy-ball momentum; its state lives for one round.
        weight_decay: L2 penalty on what a step trains.
        clip_norm: Largest norm of a step's gradient, over what the step trains; None does not clip.
        milestones: Rounds from which on the learning rate is multiplied by `gamma` once more.
        gamma: See `milestones`.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def lr_at(self, round: int) -> float:
        """Return the learning rate of a round."""
        return self.lr * self.gamma ** sum(round >= m for m in self.milestones)


@dataclass(frozen=True)
class Setting:
    """What every method is told about the run, on the server and on the devices.

    Attributes:
        plan: The network it trains; of several equal ones, any.
        optimiser: Local training.
        round_seconds: Length of a round, the deadline.
        members: How many such networks there are, see `Method.members`.
    """

    plan: SubnetPlan
    optimiser: Optimiser
    round_seconds: float
    members: int = 1


@dataclass(frozen=True)
class Report:
    """What a server knows of a device at the start of a round, and no more.

    Attributes:
        samples: Samples the device is to process in the round, over all local epochs.
        rate_macs_per_s: The last rate it measured, training MAC/s.
        turn: How many participations, of any device, the server has begun before this one.
    """

    samples: int
    rate_macs_per_s: float
    turn: int = 0


class Batches(Protocol):
    """A device's mini-batches of one round."""

    @property
    def labels(self) -> Tensor:
        """Labels of all the device's samples."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over (inputs, labels)."""


O = TypeVar("O", bound=Options)  # noqa: E741
S = TypeVar("S", WeightedSum, HolderSum)


class Method(ABC, Generic[O, S]):
    """The seam between a federated method and every engine.

    A new method is one file with a subclass of this, and a line in `METHODS`.

    Attributes:
        family: Who talks to whom.
        name: Its name in an experiment file.
        resources: "own" means; "full" gives every device the means to train the whole network in time.
        deadline: Whether a device must finish by the end of the round.
        partial: Whether the work of a device that did not finish can be used.
    """

    family: ClassVar[Literal["federated"]] = "federated"
    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options
    resources: ClassVar[Literal["own", "full"]] = "own"
    deadline: bool = True
    partial: ClassVar[bool] = False

    def __init__(self, setting: Setting, options: O) -> None:
        self.setting = setting
        self.plan = setting.plan
        self.options = options

    @classmethod
    def network(cls, reference: str, options: O) -> str:
        """Return the network this method trains where the experiment names `reference`."""
        return reference

    @property
    def most_macs(self) -> float:
        """Forward MACs per sample of the dearest step there is: the whole network's."""
        return self.plan.macs_of(self.plan.full)

    @classmethod
    def members(cls, macs_reference: float, macs_own: float, options: O) -> int:
        """Return how many networks are trained independently, to vote together: one.

        Args:
            macs_reference: Forward MACs per sample of the experiment's network.
            macs_own: The same of the network that the method trains.
            options: The method's own keys.
        """
        return 1

    def begin(self, params: Params) -> dict[str, Tensor]:
        """Return what the server starts with: the network's parameters, and what else the method keeps."""
        return dict(params)

    def deployed(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters of the network as it would be used now."""
        return dict(params)

    def logits(self, params: Params, x: Tensor) -> Tensor:
        """Return what the network says, [N, classes].

        Args:
            params: As `deployed` returns them.
            x: [N, ...] inputs.
        """
        return self.plan.run(params, self.plan.full, x, training=False)

    def assign(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Message:
        """Return what the server sends to one device: here the whole network and the learning rate."""
        return Message(dict(params), {"lr": self.setting.optimiser.lr_at(round)})

    @abstractmethod
    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train on the device; None if no step ended in time."""

    def expects(self, assigned: Message) -> tuple[Expected, dict[str, type]]:
        """Return what an update must look like, tensors and scalars: by default a change of all parameters."""
        return describe(assigned.tensors), {"weight": float}

    def most_weight(self, report: Report) -> float:
        """Return the largest weight an honest device can claim for a round."""
        return math.inf

    def check(self, report: Report, update: Message) -> None:
        """Check an update beyond its form: every number that a device sends is a weight of something.

        Raises:
            WireError: It claims more than an honest device can.
        """
        most = self.most_weight(report)
        for name, claimed in update.scalars.items():
            if not 0.0 <= float(claimed) <= most * (1 + _ROUNDING):
                raise WireError(f"claims a {name} of {claimed:g} where {most:g} is the most there can be")

    @abstractmethod
    def empty(self, params: Params) -> S:
        """Return the running sum over no device."""

    @abstractmethod
    def accumulate(self, total: S, assigned: Message, update: Message) -> None:
        """Add a validated update to a running sum; nothing is kept per device."""

    @abstractmethod
    def finish(self, params: Params, total: S) -> dict[str, Tensor]:
        """Return the new parameters."""

    def work(self, report: Report) -> float:
        """Return the training MACs a device is expected to spend in a round, to balance workers by."""
        whole = PHI * self.plan.macs(self.plan.uniform(0.0)) * report.samples
        return min(whole, report.rate_macs_per_s * self.setting.round_seconds)


class DeltaMethod(Method[O, WeightedSum]):
    """Devices send the change of all parameters; the server adds the weighted mean (Algorithm 2)."""

    def empty(self, params: Params) -> WeightedSum:
        """Return the running sum over no device."""
        return WeightedSum()

    def accumulate(self, total: WeightedSum, assigned: Message, update: Message) -> None:
        """Add w_i * dtheta_i and w_i."""
        total.add(update.tensors, float(update.scalars["weight"]))

    def finish(self, params: Params, total: WeightedSum) -> dict[str, Tensor]:
        """Return theta + sum w_i dtheta_i / sum w_i; theta itself if no device reported."""
        mean = total.mean()
        if mean is None:
            return dict(params)
        return {name: (p.double() + mean[name]).to(p.dtype) for name, p in params.items()}


def change(after: Params, before: Params) -> dict[str, Tensor]:
    """Return after - before, tensor by tensor."""
    return {name: after[name] - tensor for name, tensor in before.items()}
