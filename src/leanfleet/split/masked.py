"""The server with masks: shared weights, seen by every client through soft masks of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from leanfleet.split import masks
from leanfleet.split.adam import Adam
from leanfleet.split.server import Heard, View, check_finite, unharmed

Scope = Literal["all", "active"]
"""Whose masks the penalty shrinks at a server step: all clients' (the paper's), or those of the client in the batch."""


@dataclass(frozen=True)
class MaskSetting:
    """How masks are kept and trained.

    Attributes:
        clients: How many clients have masks.
        kind: One number a weight, or one an output channel.
        penalty: Weight of the sum of all masks (lambda).
        scope: Whose masks the penalty shrinks.
    """

    clients: int
    kind: masks.Kind
    penalty: float
    scope: Scope


class MaskedServer:
    """One network, with masks for each client (Chopra et al. 2021, as the first author's code has it).

    Args:
        net: The server's half, W.
        setting: The masks.
        lr: Learning rate of Adam.
        weight_decay: L2 penalty on weights and mask logits.
        replies: Whether the gradient at the cut is wanted.
        entry: What activations go through before the network.
        generator: Draws the first masks.
    """

    def __init__(
        self,
        net: nn.Module,
        setting: MaskSetting,
        *,
        lr: float,
        weight_decay: float,
        replies: bool,
        entry: nn.Module,
        generator: torch.Generator,
    ) -> None:
        self._net, self._setting, self._replies = net, setting, replies
        self._entry = entry
        self._weights = dict(net.named_parameters())
        logits = masks.initial(self._weights, setting.clients, setting.kind, generator)
        self._logits = {name: v.requires_grad_() for name, v in logits.items()}
        self._rows = [masks.row(self._logits, i) for i in range(setting.clients)]
        together = list(self._logits.values()) if setting.scope == "all" else []
        self._optimisers = {"all": Adam.of([*self._weights.values(), *together], lr, weight_decay)}
        if setting.scope == "active":
            # Adam moves whatever it holds at every step: who is not in the batch must not be in it.
            self._optimisers |= {
                str(i): Adam.of(row.values(), lr, weight_decay) for i, row in enumerate(self._rows)
            }

    def step(self, client: int, activation: Tensor, labels: Tensor) -> Heard:
        """See `Server.step`; the loss is the cross entropy without the masks' penalty."""
        activation = activation.detach().requires_grad_(self._replies)
        row = self._rows[client]
        for tensor in (*self._weights.values(), *row.values()):
            tensor.grad = None
        with unharmed(self._net):
            view = masks.effective(self._weights, masks.soft(row), self._setting.kind)
            # A copy: the half may begin with a step in place.
            logits = functional_call(self._net, view, (self._entry(activation.clone()),))
            loss = F.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            trained = (activation, *self._weights.values(), *row.values())
            check_finite(loss, [t.grad for t in trained], self._net)
        self._descend(client, row)
        return Heard(float(loss.detach()), activation.grad)

    def set_lr(self, lr: float) -> None:
        """See `Server.set_lr`."""
        for optimiser in self._optimisers.values():
            optimiser.lr = lr

    def end_round(self, weights: Sequence[float]) -> None:
        """Do nothing: the weights are shared, the masks never are."""

    def view(self, client: int) -> View:
        """See `Server.view`."""
        return self._view(masks.soft(self._rows[client]))

    def unseen(self) -> View:
        """Return what a client is served with that has never been seen: the mean of all masks (our decision)."""
        return self._view(masks.of_unseen(self._logits))

    def tensors(self) -> dict[str, Tensor]:
        """See `Server.tensors`."""
        return {
            **{f"net/{name}": t for name, t in self._net.state_dict().items()},
            **{f"masks/{name}": v.detach() for name, v in self._logits.items()},
            **{f"{who}/{name}": t for who, o in self._optimisers.items() for name, t in o.moments().items()},
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Server.restore`."""
        self._net.load_state_dict(_under("net", tensors))
        with torch.no_grad():
            for name, v in _under("masks", tensors).items():
                # In place: every client's row lies in this memory.
                self._logits[name].copy_(v)
        for who, optimiser in self._optimisers.items():
            optimiser.restore(_under(who, tensors))

    def _view(self, soft: Mapping[str, Tensor]) -> View:
        with torch.no_grad():
            own = masks.effective(self._weights, soft, self._setting.kind)
        return {**dict(self._net.named_buffers()), **{name: t.detach() for name, t in own.items()}}

    def _descend(self, client: int, row: Mapping[str, Tensor]) -> None:
        if self._setting.scope == "all":
            masks.fill_gradients_(self._logits, client, row, self._setting.penalty)
            self._optimisers["all"].step()
            return
        with torch.no_grad():
            for v in row.values():
                s = v.sigmoid()
                shrink = self._setting.penalty * s * (1 - s)
                v.grad = shrink if v.grad is None else v.grad + shrink
        self._optimisers["all"].step()
        self._optimisers[str(client)].step()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
