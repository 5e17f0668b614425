"""Forward multiply-accumulates of any network, by formula where that does, else as torch counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import NetworkError

_LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Layers with parameters that cost no multiply-accumulates, by convention.
_FREE: Final = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.PReLU)
_PRODUCTS: Final = ("mm", "mv", "dot", "mat", "linear", "conv", "einsum", "attention", "rnn", "lstm", "gru")


def by_formula(net: nn.Module, graph: fx.Graph | None) -> bool:
    """Return whether convolutions and linear layers are all that costs multiply-accumulates in a network.

    Args:
        net: The network.
        graph: Its graph; None where there is none.
    """
    owners = [m for m in net.modules() if next(m.parameters(recurse=False), None) is not None]
    calls = [] if graph is None else [n for n in graph.nodes if n.op in ("call_function", "call_method")]
    names = [getattr(n.target, "__name__", str(n.target)) for n in calls]
    return (
        graph is not None
        and all(isinstance(m, (*_LAYERS, *_FREE)) for m in owners)
        and not any(product in name for name in names for product in _PRODUCTS)
    )


@contextmanager
def counted(module: nn.Module, example: Tensor, formula: bool) -> Iterator[Callable[[], int]]:
    """Count the MACs of whatever is done with a network as it is used; afterwards its parts have their old modes.

    Args:
        module: The network, or a half.
        example: What it is given; for the error.
        formula: Whether formulas do, see `by_formula`: the other way loads a good part of torch's compiler.

    Yields:
        A function that returns the MACs so far.

    Raises:
        NetworkError: The network does not take the example.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad(), _formulas(module) if formula else _torchs() as count:
            module.eval()
            yield count
    except (RuntimeError, ValueError, IndexError) as error:
        line = str(error).partition("\n")[0]
        raise NetworkError(f"the network does not take {tuple(example.shape[1:])}: {line}") from error
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _formulas(module: nn.Module) -> Iterator[Callable[[], int]]:
    total = 0

    def add(layer: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += result.numel() * weight[0].numel()

    with ExitStack() as hooks:
        for part in module.modules():
            if isinstance(part, _LAYERS):
                hooks.callback(part.register_forward_hook(add).remove)
        yield lambda: total


@contextmanager
def _torchs() -> Iterator[Callable[[], int]]:
    # Fused attention would not be counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield lambda: counter.get_total_flops() // 2
