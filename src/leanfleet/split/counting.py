"""Forward multiply-accumulates of a network, or of any part of a run, as it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from leanfleet.errors import NetworkError
from leanfleet.nets.macs import MacCounter, unfused


@contextmanager
def counted(module: nn.Module, example: Tensor) -> Iterator[MacCounter]:
    """Count the MACs of whatever is done with a network as it is used; afterwards its parts have their old modes.

    Args:
        module: The network, or a half.
        example: What it is given; for the error.

    Raises:
        NetworkError: The network does not take the example.
    """
    modes = {part: part.training for part in module.modules()}
    counter = MacCounter()
    try:
        with torch.no_grad(), unfused(), counter:
            module.eval()
            yield counter
    except (RuntimeError, ValueError, IndexError) as error:
        line = str(error).partition("\n")[0]
        raise NetworkError(f"the network does not take {tuple(example.shape[1:])}: {line}") from error
    finally:
        for part, mode in modes.items():
            part.training = mode
