"""The two objectives of the search, and how good a set of vectors is (Rapp et al. 2022, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leanfleet.search.trials import Values

REFERENCE = (1.1, 1.1)
"""Reference point of the hypervolume (our decision)."""


@dataclass(frozen=True)
class Scale:
    """What the constant vectors 0 and 0.5 cost and gain, which both objectives are normalised by.

    Attributes:
        cost: Cost of (no dropout, half of everything dropped).
        gain: Gain of the same.
    """

    cost: tuple[float, float]
    gain: tuple[float, float]

    def f1(self, cost: Values) -> Values:
        """Return (cost - cost(0.5)) / (cost(0) - cost(0.5)); exact, 1 for no dropout."""
        full, half = self.cost
        return (cost - half) / (full - half)

    def f2(self, gain: Values, reference: Values | None = None) -> Values:
        """Return (gain(0) - gain) / (gain(0) - gain(0.5)); noisy, 0 for no dropout.

        Args:
            gain: Gains of short trainings.
            reference: What no dropout gained with the same random numbers each; its mean if None.
        """
        full, half = self.gain
        return ((full if reference is None else reference) - gain) / (full - half)


def hypervolume(f1: Values, f2: Values) -> float:
    """Return the area that the points dominate, up to the reference point (1.1, 1.1)."""
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=np.array(REFERENCE))(np.stack([f1, f2], axis=1)))


def nondominated(f1: Values, f2: Values, doubt: Values | float = 0.0) -> npt.NDArray[np.bool_]:
    """Return which points no other one beats in both objectives.

    Args:
        f1: [n] costs.
        f2: [n] losses of gain.
        doubt: [n] by how much another point must gain more before this one counts as beaten.
    """
    cheaper = f1[None, :] <= f1[:, None]
    better = f2[None, :] <= f2[:, None] - np.broadcast_to(doubt, f2.shape)[:, None]
    differs = (f1[None, :] < f1[:, None]) | (f2[None, :] < f2[:, None])
    beaten: npt.NDArray[np.bool_] = (cheaper & better & differs).any(axis=1)
    return ~beaten


def equidistant(f1: Values, count: int) -> npt.NDArray[np.int64]:
    """Return the indices of at most `count` points whose costs are spread as evenly as they allow, both ends in."""
    order = np.argsort(f1, kind="stable")
    if len(order) <= max(count, 0):
        return order.astype(np.int64)
    if count < 1:
        return order[:0].astype(np.int64)
    wanted = np.linspace(f1[order[0]], f1[order[-1]], count)
    nearest = np.abs(f1[order][None, :] - wanted[:, None]).argmin(axis=1)
    found: npt.NDArray[np.int64] = order[np.unique(nearest)].astype(np.int64)
    return found
