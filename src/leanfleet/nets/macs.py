"""What any network costs, counted as it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def forward_macs(net: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of convolutions and linear layers for one sample.

    Args:
        net: The network; it is not changed.
        example: [N, ...] inputs.
    """
    training, counter = net.training, MacCounter()
    with torch.no_grad(), unfused(), counter:
        net.eval()(example[:1])
    net.train(training)
    return counter.macs


@contextmanager
def unfused() -> Iterator[None]:
    """Let attention be computed by operations that are counted: of the fused ones torch has no formula."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what torch's own formulas say of every operation, as its `FlopCounterMode` does.

    That one loads torch's compiler before it counts, which takes two seconds.

    Attributes:
        flops: So far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates so far, of two operations each."""
        return self.flops // 2

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Here the compiler would be loaded; older versions of torch do neither.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result
