"""Levels: a few widths, each the first channels of every layer (HeteroFL, FjORD)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from leanfleet.averaging import HolderSum
from leanfleet.errors import NetworkError
from leanfleet.federated.method import O, Params, Report, Setting
from leanfleet.federated.submodel import VOTE, SubModel
from leanfleet.subnet import Kept, SubnetPlan
from leanfleet.wire import Message

_HELD = "levels/held"
LEVEL = "level"


class Levels(SubModel[O]):
    """A device gets a level, 0 the widest; nothing but its number tells which channels these are.

    A device that has less than full resources is never given the widest level where only what fits is given, and
    what only that level has would stay at its random start: so the network in use is the widest level that some device
    has ever held (our decision).

    Args:
        setting: See `Method`.
        options: The method's own keys.
        widths: Shares of the channels, descending.

    Raises:
        NetworkError: A norm's statistics span channels: a level inside a whole network would be another network.
    """

    def __init__(self, setting: Setting, options: O, widths: Sequence[float]) -> None:
        super().__init__(setting, options)
        if self.plan.spanning:
            raise NetworkError(
                f"[method] name = '{self.name}': the statistics of '{self.plan.spanning[0]}' span channels, so a level "
                "cannot be used by itself; take batch or instance norms, or another method"
            )
        self.levels = [prefix(self.plan, width) for width in widths]
        self.macs = [self.plan.macs_of(kept) for kept in self.levels]

    @abstractmethod
    def level(self, report: Report) -> int:
        """Return the level for a device."""

    def begin(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters, and which levels have been held so far: none."""
        return {**params, _HELD: torch.zeros(len(self.levels))}

    def deployed(self, params: Params) -> dict[str, Tensor]:
        """Return the widest level that has been held, inside a whole network of zeros."""
        own = {name: params[name] for name in self.plan.parameters}
        widest = self.widest(params)
        kept = self.levels[0 if widest is None else widest]
        whole = {name: torch.zeros_like(p) for name, p in own.items()}
        self.plan.unpack_(whole, self.plan.pack(own, kept), kept)
        return whole

    def choose(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Kept:
        """Return the first channels of every layer."""
        return self.levels[self.level(report)]

    def assign(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Message:
        """Return the level's parameters, and its number."""
        level = self.level(report)
        own = {name: params[name] for name in self.plan.parameters}
        lr = self.setting.optimiser.lr_at(round)
        packed = self.plan.pack(own, self.levels[level])
        return Message(packed, {LEVEL: float(level), "lr": lr, VOTE: self.vote(report)})

    def opened(self, message: Message) -> tuple[Kept, dict[str, Tensor]]:
        """Return the level's channels and its parameters."""
        return self.levels[int(message.scalars[LEVEL])], dict(message.tensors)

    def accumulate(self, total: HolderSum, assigned: Message, update: Message) -> None:
        """Add the trained values at the level's places, and note that it was held."""
        super().accumulate(total, assigned, update)
        device = next(iter(update.tensors.values())).device
        level = torch.tensor([int(assigned.scalars[LEVEL])], device=device)
        total.add({_HELD: torch.ones(1, device=device)}, {_HELD: (level,)})

    def widest(self, params: Params) -> int | None:
        """Return the widest level that some device has held so far; None at the start."""
        held: list[int] = params[_HELD].nonzero().flatten().tolist()
        return min(held, default=None)


def prefix(plan: SubnetPlan, share: float) -> Kept:
    """Return the first ceil(C * share) channels of every group, at least one, of every cell alike."""
    # The last ulp of a power must not add a channel.
    each = [max(1, math.ceil(share * group.channels / group.cells - 1e-9)) for group in plan.groups]
    return plan.windows([count * group.cells for count, group in zip(each, plan.groups, strict=True)])
