"""What a server does with an update before it is added: bounds on its norm and claims, weight if it is stale."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from leanfleet.engines.devices import add_update
from leanfleet.errors import WireError
from leanfleet.federated import Method, Report
from leanfleet.federated.method import DeltaMethod, Params
from leanfleet.ledger import PHI
from leanfleet.wire import Message, decode, encode

# A round that moves a network by more than this multiple of its own length has not trained it.
_ABSURD = 10.0
_REMEMBERED, _ENOUGH = 64, 5
_ROUNDING = 1e-6
_HEADER_BYTES = 4096
_HEADER_BYTES_PER_TENSOR = 256


@dataclass(frozen=True)
class Assigned:
    """What the server remembers of a device's task.

    Attributes:
        round: The round, from 0.
        report: What the server knew of the device.
        message: What it sent.
        bytes_down: Bytes of that, as encoded.
    """

    round: int
    report: Report
    message: Message
    bytes_down: int


def accept(
    method: Method[Any, Any],
    params: Params,
    total: Any,
    task: Assigned,
    up: bytes,
    clip_norm: float = 0.0,
    norms: UsualNorms | None = None,
) -> str:
    """Add an update if it is sound; return why it was left out, or "".

    Args:
        method: The method.
        params: The server's parameters.
        total: The running sum.
        task: What the device was to do.
        up: What it sent.
        clip_norm: Largest norm of a change; longer ones are shortened to it. 0 clips nothing.
        norms: What is usual; None knows nothing.
    """
    try:
        up, norm = _bounded(method, params, task, up, clip_norm)
        if norms is not None:
            norms.check(norm)
    except WireError as error:
        return str(error)
    rejected = add_update(method, total, task.message, task.report, up)
    if norms is not None and not rejected:
        norms.take(norm)
    return rejected


class UsualNorms:
    """How long changes have been lately: one that is far longer than most is nobody's training (our decision)."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_REMEMBERED)

    def check(self, norm: float) -> None:
        """Check a change.

        Raises:
            WireError: It is far too long.
        """
        usual = statistics.median(self._last) if len(self._last) >= _ENOUGH else math.inf
        if norm > _ABSURD * usual:
            raise WireError(f"moves the network by {norm:.3g}, where {usual:.3g} is usual")

    def take(self, norm: float) -> None:
        """Take note of one that was added."""
        self._last.append(norm)


def _bounded(
    method: Method[Any, Any], params: Params, task: Assigned, up: bytes, clip_norm: float
) -> tuple[bytes, float]:
    """Return an update, clipped, and the norm of its change."""
    expected, scalars = method.expects(task.message)
    room = _HEADER_BYTES + _HEADER_BYTES_PER_TENSOR * len(expected)
    most = room + sum(dtype.itemsize * abs(math.prod(shape)) for dtype, shape in expected.values())
    update = decode(up, expected, scalars, max_bytes=most)
    # Changes are sent as such by some methods, and as new values by others.
    base = {} if isinstance(method, DeltaMethod) else task.message.tensors
    change = {name: t.double() - base.get(name, 0) for name, t in update.tensors.items() if name in params}
    norm, length = _norm(change), _norm(params)
    if norm > _ABSURD * length:
        raise WireError(f"moves the network by {norm:.3g}, which is itself {length:.3g} long")
    if not 0.0 < clip_norm < norm:
        return up, norm
    shorter = {
        name: (base.get(name, 0) + t * (clip_norm / norm)).to(update.tensors[name].dtype)
        for name, t in change.items()
    }
    return encode(Message({**update.tensors, **shorter}, update.scalars)), clip_norm


def _norm(tensors: Params) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def check_macs(method: Method[Any, Any], report: Report, macs: float) -> None:
    """Check the MACs that a device says it has spent.

    Raises:
        WireError: They are more than all members' dearest steps cost over its samples.
    """
    most = PHI * method.most_macs * method.setting.members * report.samples
    if macs > most * (1 + _ROUNDING):
        raise WireError(f"claims {macs:.3g} MACs where {most:.3g} is the most there can be")


def fold_in(total: Any, own: Any, weight: float) -> None:
    """Add a sum to a running sum, all its weights times `weight`."""
    scaled: dict[str, Tensor] = {name: t * weight for name, t in own.tensors().items()}
    total.merge(type(total).from_tensors(scaled))
