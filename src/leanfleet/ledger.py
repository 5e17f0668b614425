"""What a run spends: multiply-accumulates, bytes, seconds; and the budgets that end it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor

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
        participations: Times that a device took part in a round.
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

    def record(self, device: int, *, macs: float, bytes_up: int, bytes_down: int, late: bool) -> None:
        """Add what one device spent in one round, late or not.

        Args:
            device: Index of the device.
            macs: Training MACs it spent, thrown away work included.
            bytes_up: Bytes it sent.
            bytes_down: Bytes it received.
            late: Whether it missed the deadline.
        """
        self.macs[device] += macs
        self.bytes_up += bytes_up
        self.bytes_down += bytes_down
        self.stragglers += late
        self.participations += 1

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
    """

    macs: float | None = None
    bytes: float | None = None
    seconds: float | None = None

    def used_up(self, ledger: Ledger) -> str | None:
        """Return the name of the first resource that is spent, or None while there is some of each left."""
        spent = (
            ("macs", ledger.macs_total, self.macs),
            ("bytes", ledger.bytes_up + ledger.bytes_down, self.bytes),
            ("seconds", ledger.seconds_virtual, self.seconds),
        )
        return next((name for name, used, limit in spent if limit is not None and used >= limit), None)
