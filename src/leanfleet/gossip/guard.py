"""Divergence is noticed while numbers still are numbers, so that a run ends with a reason and not with NaN."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from leanfleet.errors import LeanfleetError

_GROWTH: Final = 100.0
# Networks that begin with zeros may grow from here.
_LEAST: Final = 0.1


class Guard:
    """Watches one node: its loss, and the size of its model (both thresholds are our decision).

    Parameters that have grown a hundredfold without the loss being below the first one have diverged: with too
    large a consensus step that shows only after hundreds of steps, and is over soon then.

    Args:
        number: The node's.
        start: The model at the start [d].
        advice: What else to try than smaller steps.
    """

    def __init__(self, number: int, start: Tensor, advice: str = "") -> None:
        self._number, self._advice = number, advice
        self._limit = _GROWTH * max(_size(start), _LEAST)
        self._losses: tuple[float, float] | None = None

    def heard(self, loss: float, step: int) -> None:
        """Take note of a loss.

        Raises:
            LeanfleetError: It is not finite.
        """
        if not math.isfinite(loss):
            raise self.error(step, f"its loss is {loss}")
        self._losses = (self._losses[0] if self._losses else loss), loss

    def check(self, x: Tensor, weight: float, step: int) -> None:
        """Check a model.

        Args:
            x: Numerator [d].
            weight: Push-sum weight.
            step: For the message.

        Raises:
            LeanfleetError: It has diverged.
        """
        if not 0 < weight < math.inf:
            raise self.error(step, f"its push-sum weight is {weight:g}")
        size = _size(x) / weight
        learns = self._losses is not None and self._losses[1] < self._losses[0]
        if size <= self._limit or (learns and math.isfinite(size)):
            return
        raise self.error(step, f"its parameters have grown to {size:g} on average")

    def tensor(self) -> Tensor:
        """Return the state; shorter before the first loss."""
        return torch.tensor([self._limit, *(self._losses or ())], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        """Go back to a state."""
        self._limit, *losses = state.tolist()
        self._losses = (losses[0], losses[1]) if losses else None

    def error(self, step: int, what: str) -> LeanfleetError:
        """Return the error that ends a run."""
        return LeanfleetError(
            f"node {self._number}, step {step}: training has diverged: {what}; lower [method] eta or [training] "
            f"lr{self._advice}"
        )


def _size(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector)) / math.sqrt(max(1, len(vector)))
