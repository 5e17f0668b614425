"""What nodes send each other: one packed tensor and a few scalars, checked where they arrive.

plain          packed c          step, share (eta p_ij), weight (w, where there are push-sum weights)
running sums   packed counters   step, weight (a counter), seen (the last message of the receiver; -1 for none)

With random-k both also tell whether positions are `drawn`: then values alone travel, and the receiver draws their
positions from the sender's own stream of that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.gossip.layout import Layout, Part
from leanfleet.gossip.sums import Pushed
from leanfleet.wire import PACKED, Message, Payload, pack, unpack

Draw = Callable[[int], dict[str, Tensor]]
"""Step -> positions in every tensor that the sender has drawn."""

TENSORS: Final = {"packed": PACKED}
"""What `wire.decode` is to expect of a message's tensors, whatever the method."""

_PLAIN: Final[dict[str, type]] = {"step": int, "share": float}
_WEIGHTED: Final[dict[str, type]] = _PLAIN | {"weight": float}
_SUMS: Final[dict[str, type]] = {"step": int, "weight": int, "seen": int}
_DRAWN: Final[dict[str, type]] = {"drawn": bool}


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


def scalars(*, weighted: bool, sums: bool, draws: bool) -> dict[str, type]:
    """Return what `wire.decode` is to expect of a message's scalars."""
    return (_SUMS if sums else _WEIGHTED if weighted else _PLAIN) | (_DRAWN if draws else {})


def packed(payloads: Mapping[str, Payload], drawn: bool) -> Tensor:
    """Return payloads as bytes, without their positions if they are drawn."""
    return pack({name: p.values_only() for name, p in payloads.items()} if drawn else payloads)


def read_plain(layout: Layout, message: Message, weighted: bool, draw: Draw | None) -> Plain:
    """Return what a plain message holds.

    Args:
        layout: Of the vector.
        message: As decoded.
        weighted: Whether there are push-sum weights.
        draw: The sender's draws; None where there are none.

    Raises:
        WireError: It holds anything else, or what no honest sender has.
    """
    _check(message, scalars(weighted=weighted, sums=False, draws=draw is not None))
    share, weight = float(message.scalars["share"]), float(message.scalars.get("weight", 1.0))
    if not 0 < share <= 1:
        raise WireError(f"a share of {share:g}; there may be more than 0, up to 1")
    if not 0 < weight < math.inf:
        raise WireError(f"a push-sum weight of {weight:g}; it must be above 0")
    return Plain(_part(layout, message, layout.dtype, draw), share, weight)


def read_sums(layout: Layout, message: Message, draw: Draw | None) -> Sums:
    """Return what a message of running sums holds.

    Raises:
        WireError: It holds anything else.
    """
    _check(message, scalars(weighted=True, sums=True, draws=draw is not None))
    step, weight, seen = (int(message.scalars[name]) for name in ("step", "weight", "seen"))
    if not -(2**63) <= weight < 2**63:
        raise WireError("a sum of weights does not fit into 64 bits")
    part = _part(layout, message, torch.int32, draw)
    return Sums(Pushed(step, part.positions, part.values, weight), seen)


def _part(layout: Layout, message: Message, dtype: torch.dtype, draw: Draw | None) -> Part:
    data = message.tensors["packed"]
    if draw is None or not message.scalars["drawn"]:
        return layout.join(unpack(data, layout.expected(dtype)))
    drawn = draw(int(message.scalars["step"]))
    payloads = unpack(data, {name: (dtype, (len(there),)) for name, there in drawn.items()})
    if any(payload.positions is not None for payload in payloads.values()):
        raise WireError("positions where they are said to be drawn")
    return layout.join({name: p.at(drawn[name], layout.shapes[name]) for name, p in payloads.items()})


def _check(message: Message, expect: dict[str, type]) -> None:
    if message.tensors.keys() != TENSORS.keys():
        raise WireError(f"tensors {sorted(message.tensors)} instead of {sorted(TENSORS)}")
    found = {name: type(value) for name, value in message.scalars.items()}
    if found != expect:
        names = [{name: kind.__name__ for name, kind in sorted(of.items())} for of in (found, expect)]
        raise WireError(f"scalars {names[0]} instead of {names[1]}")
    if int(message.scalars["step"]) < 0:
        raise WireError(f"a step of {message.scalars['step']}")
