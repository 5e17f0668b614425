"""Energy of computing and sending: a simple model whose constants are assumptions, for every family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Joules(NamedTuple):
    """Energy in two parts: what compression saves is the second alone.

    Attributes:
        compute: Joules of the MACs.
        communication: Joules of the bytes.
    """

    compute: float
    communication: float

    @property
    def total(self) -> float:
        """Both parts."""
        return self.compute + self.communication


@dataclass(frozen=True)
class Energy:
    """Joules a MAC, a byte sent and a byte received. All defaults are ASSUMPTIONS: nothing was measured.

    Attributes:
        joules_per_mac: 4.6 pJ, a float32 addition and multiplication at 45 nm (Horowitz 2014). Memory is not in
            it: a DRAM access of 32 bits at 640 pJ may cost far more than the MAC.
        joules_per_byte_sent: 80 nJ, 10 nJ a bit, for a short-range radio (1 to 100 nJ a bit are common).
        joules_per_byte_received: As much as for sending.
    """

    joules_per_mac: float = 4.6e-12
    joules_per_byte_sent: float = 8e-8
    joules_per_byte_received: float = 8e-8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} = {value:g}: must be 0 or more, and finite")

    def joules(self, *, macs: float = 0.0, bytes_sent: float = 0.0, bytes_received: float = 0.0) -> Joules:
        """Return the energy of some work.

        Args:
            macs: Training MACs.
            bytes_sent: Bytes that were put on the air or the wire: a broadcast to many receivers counts once.
            bytes_received: Bytes that were received: a broadcast counts for every receiver.
        """
        sending = bytes_sent * self.joules_per_byte_sent
        return Joules(macs * self.joules_per_mac, sending + bytes_received * self.joules_per_byte_received)
