"""Networks that say `view`: batches have their channels last in memory, and a view cannot flatten those."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def take_channels_last(net: nn.Module, example: Tensor) -> None:
    """Let a network take batches as they lie; one whose `view` refuses them gets a copy with channels first.

    Args:
        net: The network, or a half; a hook is added where it is needed.
        example: Inputs [N, ...] that lie as those of training do.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(net).eval()(example)
    except RuntimeError as error:
        # Other errors are told by whoever uses the network.
        if "view size is not compatible" in str(error):
            net.register_forward_pre_hook(_channels_first)


def images(shape: tuple[int, int, int], count: int = 2) -> Tensor:
    """Return black images of a shape (C, H, W), [count, C, H, W], that lie as those of batches do."""
    channels, height, width = shape
    return torch.zeros(count, height, width, channels).permute(0, 3, 1, 2)


def _channels_first(net: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Not `contiguous`: an image of one channel counts as both, and convolutions go on with channels last.
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in given)
