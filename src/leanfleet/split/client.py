"""A client: its half of the network, perhaps a projection head, and an Adam of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from leanfleet.errors import LeanfleetError
from leanfleet.split.adam import Adam

LocalLoss = Callable[[Tensor, Tensor], Tensor]
"""(embeddings [N, D], labels [N]) -> a scalar."""


class Client:
    """One client's side; a method says which of its parts are there.

    Args:
        net: The client's half.
        head: What stands between activations and the local loss; None takes the flattened activations.
        head_macs: Forward MACs per sample of the head.
        loss: The local loss; None trains by what the server sends, or not at all.
        listens: Whether the server sends gradients for what it received.
        lr: Learning rate of Adam.
        weight_decay: L2 penalty.
        activation_l1: Weight of the activations' L1 norm, summed over batch and units.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        head: nn.Module | None = None,
        head_macs: int = 0,
        loss: LocalLoss | None = None,
        listens: bool = False,
        lr: float,
        weight_decay: float,
        activation_l1: float = 0.0,
    ) -> None:
        self.head_macs = head_macs
        self.listens = listens
        self._modules = nn.ModuleDict({"net": net} if head is None else {"net": net, "head": head})
        self._net, self._head, self._loss, self._l1 = net, head, loss, activation_l1
        self._optimiser = Adam.of(self._modules.parameters(), lr, weight_decay)
        self._pending: tuple[Tensor, Tensor | None] | None = None

    @property
    def learns_alone(self) -> bool:
        """Whether it trains without the server."""
        return self._loss is not None

    @property
    def trains(self) -> bool:
        """Whether the client's half changes at all."""
        return self.learns_alone or self.listens

    def to(self, device: torch.device) -> Client:
        """Move the client; return it."""
        self._modules.to(device)
        return self

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        self._optimiser.lr = lr

    def step(self, x: Tensor, y: Tensor, *, sends: bool) -> tuple[Tensor | None, float | None]:
        """Train on one mini-batch; a client that listens and sends does so only when the reply is there.

        The gradient of whatever the server does stops at the cut (AdaSplit's public code), but for `reply`.

        Args:
            x: [N, ...] images.
            y: [N] labels.
            sends: Whether the activations are wanted.

        Returns:
            The activations without a graph, None unless wanted; and the local loss, None where there is none.

        Raises:
            LeanfleetError: The local loss is not finite; nothing has changed.
        """
        if self._loss is None and not sends:
            return None, None
        with torch.set_grad_enabled(self.trains):
            activation = self._net(x)
            local = self._local(activation, y)
        value = None if local is None else float(local.detach())
        if value is not None and not math.isfinite(value):
            raise LeanfleetError(f"its local loss is {value}: training has diverged; lower [training] lr")
        if sends and self.listens:
            self._pending = activation, local
        elif local is not None:
            self._descend([local], [None])
        return activation.detach() if sends else None, value

    def reply(self, gradient: Tensor | None) -> None:
        """End a step that waited for the server: with its gradient at the cut, or without (it was left out)."""
        assert self._pending is not None, "no step is waiting for a reply"
        activation, local = self._pending
        self._pending = None
        losses: list[Tensor] = [] if local is None else [local]
        gradients: list[Tensor | None] = [None] * len(losses)
        if gradient is not None:
            losses, gradients = [*losses, activation], [*gradients, gradient]
        if losses:
            self._descend(losses, gradients)

    def activations(self, x: Tensor) -> Tensor:
        """Return what would be sent, with the half as it is used."""
        self._modules.eval()
        with torch.no_grad():
            found: Tensor = self._net(x)
        self._modules.train()
        return found

    def own(self) -> dict[str, Tensor]:
        """Return parameters and statistics of half and head, in place: what a hand-over passes on."""
        return self._modules.state_dict()

    def own_net(self) -> dict[str, Tensor]:
        """Return parameters and statistics of the half alone: what averaging is about."""
        return {f"net.{name}": tensor for name, tensor in self._net.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over parameters and statistics, as `own` or `own_net` gives them; Adam's moments stay."""
        self._modules.load_state_dict(dict(tensors), strict=False)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state."""
        return {**self.own(), **self._optimiser.moments()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state."""
        self.load({name: t for name, t in tensors.items() if not name.startswith("adam/")})
        self._optimiser.restore(tensors)

    def _local(self, activation: Tensor, y: Tensor) -> Tensor | None:
        if self._loss is None:
            return None
        embedding = activation.flatten(1) if self._head is None else self._head(activation)
        loss = self._loss(embedding, y)
        return loss + self._l1 * activation.abs().sum() if self._l1 else loss

    def _descend(self, losses: list[Tensor], gradients: list[Tensor | None]) -> None:
        # Where all of the half is frozen there may be nothing to train.
        trained = [place for place, loss in enumerate(losses) if loss.requires_grad]
        if not trained:
            return
        self._optimiser.forget_gradients()
        torch.autograd.backward([losses[i] for i in trained], [gradients[i] for i in trained])
        self._optimiser.step()
