"""Adam with coupled weight decay, whose state travels as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def adam(parameters: Iterable[Tensor], lr: float, weight_decay: float) -> torch.optim.Adam:
    """Return Adam as AdaSplit's public code uses it: the penalty goes through the moments (not AdamW)."""
    # Fused: one pass over the masks of all clients instead of ten.
    return torch.optim.Adam(parameters, lr, weight_decay=weight_decay, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the steps to come."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as `adam/PARAMETER/NAME` tensors; parameters by number."""
    state = optimiser.state_dict()["state"]
    return {f"adam/{number}/{name}": t for number, entry in state.items() for name, t in entry.items()}


def restore_moments(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Go back to what `moments` returned; other names are not looked at."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam/"):
            _, number, entry = name.split("/")
            state.setdefault(int(number), {})[entry] = tensor.clone()
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
