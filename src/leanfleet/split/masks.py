"""Soft masks on the server's weights, one set for every client (Chopra et al. 2021).

All clients' logits V are kept together, `[clients, ...]` in one tensor a parameter, so that what concerns all of
them (the penalty's gradient, an Adam step) is a few large operations. What a client trains through is a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["weight", "channel"]
"""`weight`: a logit for every entry of every parameter, the paper's. `channel`: one for every output channel of a
layer, which its weights and bias share (ours): thousands of times fewer."""


def initial(
    params: Mapping[str, Tensor], clients: int, kind: Kind, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return fresh mask logits V, from N(0, 1).

    Args:
        params: The server's parameters.
        clients: How many clients.
        kind: See `Kind`.
        generator: On the CPU.

    Returns:
        `[clients, ...]` for every mask, by the name of the first parameter that it scales.
    """
    owners = _owners(params, kind)
    return {
        name: torch.randn(clients, *_shape(params[name], kind), generator=generator).to(params[name])
        for name in dict.fromkeys(owners.values())
    }


def row(logits: Mapping[str, Tensor], client: int) -> dict[str, Tensor]:
    """Return one client's logits: leaves that take gradients, in the memory of `logits`."""
    return {name: v.detach()[client].requires_grad_() for name, v in logits.items()}


def soft(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks sigmoid(V) of a client, from its logits."""
    return {name: v.sigmoid() for name, v in row.items()}


def of_unseen(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks for a client that has none: the mean of all clients' masks (our decision)."""
    return {name: v.detach().sigmoid().mean(0) for name, v in logits.items()}


def effective(params: Mapping[str, Tensor], masks: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Return the weights that a client is served with, W * mask; never thresholded, and differentiable in both.

    Args:
        params: The server's parameters W.
        masks: One client's, from `soft` or `of_unseen`.
        kind: What they were made as.
    """
    owners = _owners(params, kind)
    return {name: w * _broadcast(masks[owners[name]], w) for name, w in params.items()}


def penalty(logits: Mapping[str, Tensor]) -> Tensor:
    """Return Omega: the sum, not the mean, of sigmoid(V) over all entries, of all clients or of one `row`."""
    return torch.stack([v.sigmoid().sum() for v in logits.values()]).sum()


def fill_gradients_(
    logits: Mapping[str, Tensor], client: int, row: Mapping[str, Tensor], weight: float
) -> None:
    """Set the gradients of all clients' logits in a server step: of the penalty, and of one client's loss.

    That of `weight * penalty(logits)` is known, weight * s * (1 - s), so no graph over all clients is needed.

    Args:
        logits: All clients'; their `grad` is overwritten, and its memory used again.
        client: Whose batch it is.
        row: Its logits, after a backward pass through the cross entropy.
        weight: lambda.
    """
    with torch.no_grad():
        for name, v in logits.items():
            if v.grad is None:
                v.grad = torch.empty_like(v)
            torch.sigmoid(v, out=v.grad)
            v.grad.addcmul_(v.grad, v.grad, value=-1.0).mul_(weight)
            own = row[name].grad
            if own is not None:
                v.grad[client] += own


def _owners(params: Mapping[str, Tensor], kind: Kind) -> dict[str, str]:
    """Return, for every parameter, the name under which its mask is kept."""
    if kind == "weight":
        return {name: name for name in params}
    first: dict[tuple[str, torch.Size], str] = {}
    return {
        name: first.setdefault((name.rpartition(".")[0], w.shape[:1]), name) for name, w in params.items()
    }


def _shape(param: Tensor, kind: Kind) -> torch.Size:
    return param.shape if kind == "weight" else param.shape[:1]


def _broadcast(mask: Tensor, param: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (param.ndim - mask.ndim))
