"""What nodes send each other: one packed tensor and a few scalars, checked where they arrive.

plain          packed c          step, share (eta p_ij), weight (w, where there are push-sum weights)
running sums   packed counters   step, weight (a counter), seen (the last message of the receiver; -1 for none)
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch

from leanfleet.errors import WireError
from leanfleet.gossip.layout import Layout, Part
from leanfleet.gossip.sums import Pushed
from leanfleet.wire import PACKED, Message, Scalar, pack, unpack

TENSORS: Final = {"packed": PACKED}
"""What `wire.decode` is to expect of a message's tensors, whatever the method."""

_PLAIN: Final[dict[str, type]] = {"step": int, "share": float}
_WEIGHTED: Final[dict[str, type]] = _PLAIN | {"weight": float}
_SUMS: Final[dict[str, type]] = {"step": int, "weight": int, "seen": int}


class Plain(NamedTuple):
    """A share of what a sender has, of which nothing is kept on the link.

    Attributes:
        part: c.
        share: eta p_ij.
        weight: The sender's push-sum weight w; 1 where there are none.
    """

    part: Part
    share: float
    weight: float


class Sums(NamedTuple):
    """Running sums, and what the sender has seen of the receiver."""

    pushed: Pushed
    seen: int


def scalars(*, weighted: bool, sums: bool) -> dict[str, type]:
    """Return what `wire.decode` is to expect of a message's scalars."""
    return dict(_SUMS if sums else _WEIGHTED if weighted else _PLAIN)


def write_sums(layout: Layout, pushed: Pushed, totals: torch.Tensor, seen: int) -> Message:
    """Return running sums as a message; `totals` are all of them, int32 [d]."""
    told: dict[str, Scalar] = {"step": pushed.sequence, "weight": pushed.weight, "seen": seen}
    return Message({"packed": pack(layout.gather(totals, pushed.positions))}, told)


def read_plain(layout: Layout, message: Message, weighted: bool) -> Plain:
    """Return what a plain message holds.

    Raises:
        WireError: It holds anything else, or what no honest sender has.
    """
    _check(message, scalars(weighted=weighted, sums=False))
    share, weight = float(message.scalars["share"]), float(message.scalars.get("weight", 1.0))
    if not 0 < share <= 1:
        raise WireError(f"a share of {share:g}; there may be more than 0, up to 1")
    if not 0 < weight < math.inf:
        raise WireError(f"a push-sum weight of {weight:g}; it must be above 0")
    part = layout.join(unpack(message.tensors["packed"], layout.expected()))
    return Plain(part, share, weight)


def read_sums(layout: Layout, message: Message) -> Sums:
    """Return what a message of running sums holds.

    Raises:
        WireError: It holds anything else.
    """
    _check(message, scalars(weighted=True, sums=True))
    step, weight, seen = (int(message.scalars[name]) for name in ("step", "weight", "seen"))
    if not -(2**63) <= weight < 2**63:
        raise WireError("a sum of weights does not fit into 64 bits")
    part = layout.join(unpack(message.tensors["packed"], layout.expected(torch.int32)))
    return Sums(Pushed(step, part.positions, part.values, weight), seen)


def _check(message: Message, expect: dict[str, type]) -> None:
    if message.tensors.keys() != TENSORS.keys():
        raise WireError(f"tensors {sorted(message.tensors)} instead of {sorted(TENSORS)}")
    found = {name: type(value) for name, value in message.scalars.items()}
    if found != expect:
        names = [{name: kind.__name__ for name, kind in sorted(of.items())} for of in (found, expect)]
        raise WireError(f"scalars {names[0]} instead of {names[1]}")
    if int(message.scalars["step"]) < 0:
        raise WireError(f"a step of {message.scalars['step']}")
