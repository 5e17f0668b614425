"""The client's own loss: NT-Xent with labels, so that no gradient has to come down from the server."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS: Final = 1e-8
"""Shorter embeddings are taken for zero vectors: cosine near 0 with everything, and a gradient that stays finite."""


def ntxent(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the supervised NT-Xent loss of AdaSplit (Chopra et al. 2021, as the first author's code has it).

    With cosine similarities s, over all ordered pairs (i, p) of different samples with equal labels:

        mean of  logsumexp( s(i,p)/t, {s(i,n)/t : labels of i and n differ} ) - s(i,p)/t

    The denominator holds this one positive and all the anchor's negatives, not its other positives. SupCon
    (Khosla et al. 2020) is another loss.

    Args:
        embeddings: [B, D] of any length; they are normalised here.
        labels: int [B].
        temperature: t > 0.

    Returns:
        A scalar. Without a positive or without a negative pair it is 0, with a gradient of 0.
    """
    same = labels.unsqueeze(1) == labels
    positive = same.clone().fill_diagonal_(False)
    if same.all() or not positive.any():
        # Of no rows, so that it is 0 whatever they hold.
        return embeddings[:0].sum()
    unit = F.normalize(embeddings, dim=1, eps=_EPS)
    similarity = unit @ unit.T / temperature
    # Where there are two labels every anchor has negatives, so that no row is masked altogether.
    negatives = similarity.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    gaps = (negatives - similarity)[positive]
    return torch.logaddexp(gaps, torch.zeros_like(gaps)).mean()
