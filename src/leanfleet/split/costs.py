"""AdaSplit's two shares as whole numbers (Chopra et al. 2021)."""

from __future__ import annotations

import math


def local_rounds(kappa: float, rounds: int) -> int:
    """Return int(kappa * R), the rounds at the start in which nothing is sent, safe against rounding."""
    return math.floor(kappa * rounds + 1e-9)


def talkers(eta: float, clients: int) -> int:
    """Return k = max(1, round(eta * N)), the clients that talk to the server in an iteration."""
    return max(1, round(eta * clients))
