"""What a run spends: multiply-accumulates, bytes, seconds; the budgets that end it, and a score under budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor

from leanfleet.errors import UserError

PHI: Final = 3
"""Training MACs over forward MACs of one sample: forward, weight gradients, input gradients.

Our decision: 3 everywhere. Rapp et al. 2022 say that the backward pass costs about twice the forward pass;
the missing input gradient of the first layer is ignored, and the factor cancels in every ratio.
"""

_COUNTS: Final = (
    "bytes_up",
    "bytes_down",
    "server_macs",
    "seconds_virtual",
    "seconds_wall",
    "stragglers",
    "participations",
    "energy_joules",
)


@dataclass(eq=False)
class Ledger:
    """What a run has spent so far. The engine keeps it; methods never see it.

    Attributes:
        macs: Training MACs of every device, float64 `[devices]`.
        bytes_up: Bytes sent by devices, as encoded.
        bytes_down: Bytes received by devices, as encoded.
        server_macs: Training MACs spent by a server.
        seconds_virtual: Time on the fleet's virtual clock.
        seconds_wall: Time on the clock on the wall, over all resumed parts of a run.
        stragglers: Times that a device was late.
        participations: Times that a device took part in a round, or in an iteration of the split family.
        energy_joules: Energy; None as long as it is not modelled.
    """

    macs: Tensor
    bytes_up: int = 0
    bytes_down: int = 0
    server_macs: float = 0.0
    seconds_virtual: float = 0.0
    seconds_wall: float = 0.0
    stragglers: int = 0
    participations: int = 0
    energy_joules: float | None = None

    @classmethod
    def empty(cls, devices: int) -> Self:
        """Return the ledger of a fleet of `devices` that has spent nothing."""
        return cls(macs=torch.zeros(devices, dtype=torch.float64))

    def record(
        self,
        device: int,
        *,
        macs: float,
        bytes_up: int = 0,
        bytes_down: int = 0,
        late: int = 0,
        times: int = 1,
    ) -> None:
        """Add what one device spent, late or not.

        Args:
            device: Index of the device.
            macs: Training MACs it spent, thrown away work included.
            bytes_up: Bytes it sent.
            bytes_down: Bytes it received.
            late: How often it was late.
            times: How often it took part: rounds, or iterations in the split family.
        """
        self.macs[device] += macs
        self.bytes_up += bytes_up
        self.bytes_down += bytes_down
        self.stragglers += late
        self.participations += times

    @property
    def macs_total(self) -> float:
        """Training MACs of all devices together."""
        return float(self.macs.sum())

    @property
    def late_share(self) -> float:
        """Fraction of all participations that were late; 0 before the first."""
        return self.stragglers / self.participations if self.participations else 0.0

    def totals(self) -> dict[str, int | float | None]:
        """Return the spent resources under the names that a run's summary uses."""
        return {
            "macs_total": self.macs_total,
            "server_macs": self.server_macs,
            "macs_per_device_mean": self.macs_total / len(self.macs),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds_virtual": self.seconds_virtual,
            "seconds_wall": self.seconds_wall,
            "stragglers": self.stragglers,
            "late_share": self.late_share,
            "energy_joules": self.energy_joules,
        }

    def state(self) -> dict[str, Any]:
        """Return all counts but those of `tensors()`, ready for JSON."""
        return {name: getattr(self, name) for name in _COUNTS}

    def tensors(self) -> dict[str, Tensor]:
        """Return the counts that are kept per device, ready for a checkpoint."""
        return {"macs": self.macs}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the ledger that `state()` and `tensors()` were taken from.

        Raises:
            KeyError: If a count is missing.
        """
        return cls(macs=tensors["macs"].clone(), **{name: state[name] for name in _COUNTS})


@dataclass(frozen=True)
class Budget:
    """What a run may spend; None is no limit.

    Attributes:
        macs: Training MACs of all devices together (a server's are not limited).
        bytes: Bytes sent and received by devices, together.
        seconds: Virtual seconds.
        joules: Joules of all devices, as modelled.
    """

    macs: float | None = None
    bytes: float | None = None
    seconds: float | None = None
    joules: float | None = None

    def used_up(self, ledger: Ledger) -> str | None:
        """Return the name of the first resource that is spent, or None while there is some of each left."""
        spent = (
            ("macs", ledger.macs_total, self.macs),
            ("bytes", ledger.bytes_up + ledger.bytes_down, self.bytes),
            ("seconds", ledger.seconds_virtual, self.seconds),
            ("joules", ledger.energy_joules or 0.0, self.joules),
        )
        return next((name for name, used, limit in spent if limit is not None and used >= limit), None)


@dataclass(frozen=True)
class C3:
    """The C3-Score of one run, with the terms it was given under: no score means anything without them.

    Attributes:
        score: In [0, 1]; higher is better.
        over_budget: Whether the run spent more than a budget. It is scored all the same.
        bytes_max: Budget of bytes.
        macs_max: Budget of the clients' MACs.
        temperature: How little the budgets count against accuracy.
    """

    score: float
    over_budget: bool
    bytes_max: float
    macs_max: float
    temperature: float


def c3_score(
    accuracy: float,
    bytes: float,
    macs: float,
    *,
    bytes_max: float,
    macs_max: float,
    temperature: float = 8.0,
) -> C3:
    """Return `accuracy * exp(-(bytes / bytes_max + macs / macs_max) / temperature)`.

    The definition that is commonly cited for Chopra et al. 2021, not checked against the paper's text. Within
    the budgets and at the default temperature it lies in [0.7788 * accuracy, accuracy].

    Args:
        accuracy: A fraction, not per cent.
        bytes: What the run sent, counted as the budget is.
        macs: What the clients computed, counted as the budget is (a server's MACs do not count).
        bytes_max: Budget of bytes.
        macs_max: Budget of the clients' MACs.
        temperature: T.

    Raises:
        UserError: The accuracy is not in [0, 1], consumption is negative, or a budget or the temperature is not
            above 0.
    """
    if not 0.0 <= accuracy <= 1.0:
        raise UserError(f"C3-Score: the accuracy is {accuracy:g}; give a fraction from 0 to 1")
    for name, spent in (("bytes", bytes), ("macs", macs)):
        if not 0.0 <= spent < math.inf:
            raise UserError(f"C3-Score: {name} is {spent:g}; give what was spent, 0 or more")
    for name, limit in (("bytes_max", bytes_max), ("macs_max", macs_max), ("temperature", temperature)):
        if not 0.0 < limit < math.inf:
            raise UserError(f"C3-Score: {name} is {limit:g}; give a number above 0")
    score = accuracy * math.exp(-(bytes / bytes_max + macs / macs_max) / temperature)
    return C3(score, bytes > bytes_max or macs > macs_max, bytes_max, macs_max, temperature)
