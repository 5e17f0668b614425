"""Adam with coupled weight decay, whose state is named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.optim.adam import adam

_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPS: Final = 1e-8
_MOMENTS: Final = ("exp_avg", "exp_avg_sq", "step")


@dataclass(eq=False)
class Adam:
    """`torch.optim.Adam` as AdaSplit's public code uses it: the penalty goes through the moments (not AdamW).

    It is torch's own step, taken directly: its class would load the compiler, a second or two in every process.

    Attributes:
        parameters: What it moves, where there is a gradient.
        lr: Learning rate of the steps to come.
        weight_decay: L2 penalty, added to the gradient.
    """

    parameters: list[Tensor]
    lr: float
    weight_decay: float
    _state: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> Adam:
        """Return a fresh one."""
        return cls(list(parameters), lr, weight_decay)

    def forget_gradients(self) -> None:
        """Let the next backward pass begin anew."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Take a step along the gradients that are there."""
        numbers = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        moved = [self.parameters[i] for i in numbers]
        means, squares, steps = ([self._of(i)[name] for i in numbers] for name in _MOMENTS)
        with torch.no_grad():
            adam(
                moved,
                [p.grad for p in moved if p.grad is not None],
                means,
                squares,
                [],
                steps,
                # One pass over the masks of all clients instead of ten.
                fused=True,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=self.lr,
                weight_decay=self.weight_decay,
                eps=_EPS,
                maximize=False,
            )

    def moments(self) -> dict[str, Tensor]:
        """Return its state as `adam/PARAMETER/NAME` tensors, in place; parameters by number."""
        return {f"adam/{i}/{name}": t for i, entry in self._state.items() for name, t in entry.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `moments` returned; other names are not looked at."""
        self._state.clear()
        for name, tensor in tensors.items():
            if name.startswith("adam/"):
                _, number, entry = name.split("/")
                device = self.parameters[int(number)].device
                self._state.setdefault(int(number), {})[entry] = tensor.to(device, copy=True)

    def _of(self, number: int) -> dict[str, Tensor]:
        if number not in self._state:
            p = self.parameters[number]
            steps = torch.zeros((), dtype=torch.float32, device=p.device)
            zeros = (torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2))
            self._state[number] = dict(zip(_MOMENTS, (*zeros, steps), strict=True))
        return self._state[number]
