"""Batch norms of a gossip node: statistics stay local, and are taken anew at the end."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


def refresh(net: nn.Module, model: Mapping[str, Tensor], batches: Iterable[Tensor]) -> None:
    """Replace the statistics of all batch norms by plain means over batches, in place.

    Only parameters are averaged, so after the last mixing running statistics are those of other weights. The author
    code of Sparse-Push (Aketi et al. 2021) takes them anew by the way; here it is done openly, without gradients,
    and with dropout off.

    Args:
        net: The network; stays as it is.
        model: Parameters and statistics by name.
        batches: Inputs [N, ...] of local training data. Without any nothing changes.
    """
    net = copy.deepcopy(net).eval()
    norms = {
        name: m for name, m in net.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats
    }
    if not norms:
        return
    for norm in norms.values():
        # Without momentum statistics are means over all batches since their count was 0.
        norm.train().momentum = None
    state = dict(model)
    for number, inputs in enumerate(batches):
        if number == 0:
            for name in norms:
                state[f"{name}.num_batches_tracked".lstrip(".")].zero_()
        with torch.no_grad():
            functional_call(net, state, (inputs,))
