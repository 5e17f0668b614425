"""Several networks that vote."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class VotingEnsemble(nn.Module):
    """Networks that are trained apart and predict together: the logarithm of their mean softmax.

    Args:
        members: Classifiers of the same images and classes.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Return log probabilities, [N, classes], for images [N, C, H, W]."""
        return vote([member(x) for member in self.members])


def vote(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean softmax of several [N, classes] of logits."""
    return torch.stack(list(logits)).log_softmax(-1).logsumexp(0) - math.log(len(logits))
