"""An additive model of what dropout costs in gain: one rising curve a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from leanfleet.search.trials import Values

# In units of the noise of a single observation: enough to hold 2 k coefficients on a few hundred observations.
_RIDGE = 0.3


@dataclass(frozen=True)
class Additive:
    """f2(d) = sum over layers of a_l p_l + b_l p_l^2, with a_l, b_l >= 0: more dropout never helps (our decision).

    Attributes:
        linear: [groups] a_l.
        square: [groups] b_l.
    """

    linear: Values
    square: Values

    @classmethod
    def fit(cls, rates: Values, f2: Values, weights: Values, highest: float) -> Self:
        """Fit by non-negative least squares, held towards curves that are equal for all layers.

        Args:
            rates: float64 [n, groups].
            f2: float64 [n] observations; 0 without dropout.
            weights: float64 [n], how many observations each is the mean of.
            highest: The largest rate; there, in all layers at once, f2 is 1 by definition.
        """
        from scipy.optimize import nnls

        groups = rates.shape[1]
        features = np.concatenate([rates / highest, (rates / highest) ** 2], axis=1)
        root = np.sqrt(weights)
        noise = max(float(np.std(f2 - features[:, groups:].mean(axis=1))), 1e-6)
        # A prior: every layer costs the same, half of it linear, half quadratic.
        equal = np.full(2 * groups, 0.5 / groups)
        hold = _RIDGE * noise / equal[0] * np.eye(2 * groups)
        found, _ = nnls(
            np.concatenate([features * root[:, None], hold]), np.concatenate([f2 * root, hold @ equal])
        )
        return cls(found[:groups] / highest, found[groups:] / highest**2)

    def __call__(self, rates: Values) -> Values:
        """Return the modelled second objective [n] of vectors [n, groups]."""
        return rates @ self.linear + rates**2 @ self.square
