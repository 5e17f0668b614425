"""The server's side: the network behind the cut, one for all clients, one for each, or one with masks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfleet.averaging import WeightedSum
from leanfleet.errors import WireError
from leanfleet.split.adam import Adam

CPU: Final = torch.device("cpu")

View = dict[str, Tensor]
"""Parameters and statistics of the server's half as one client is served with them."""


class Heard(NamedTuple):
    """What a server step came to.

    Attributes:
        loss: Mean cross entropy of the batch, before the step.
        gradient: Of that cross entropy at the cut; None unless it is wanted.
    """

    loss: float
    gradient: Tensor | None


class Server(Protocol):
    """What every split method has behind the cut."""

    def step(self, client: int, activation: Tensor, labels: Tensor) -> Heard:
        """Train on what one client sent.

        Args:
            client: Who.
            activation: [N, ...].
            labels: int64 [N].

        Raises:
            WireError: The loss or its gradient is not finite; nothing has changed.
        """

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""

    def end_round(self, weights: Sequence[float]) -> None:
        """End a round; copies are averaged, by the weights of their clients."""

    def view(self, client: int) -> View:
        """Return what a client is served with."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state."""


class PlainServer:
    """One network for all clients (SL-basic, SplitFed V2).

    Args:
        net: The server's half.
        lr: Learning rate of Adam.
        weight_decay: L2 penalty.
        replies: Whether the gradient at the cut is wanted.
    """

    def __init__(self, net: nn.Module, *, lr: float, weight_decay: float, replies: bool) -> None:
        self._net, self._replies = net, replies
        self._optimiser = Adam.of(net.parameters(), lr, weight_decay)

    def step(self, client: int, activation: Tensor, labels: Tensor) -> Heard:
        """See `Server.step`."""
        activation = activation.detach().requires_grad_(self._replies)
        self._optimiser.forget_gradients()
        with unharmed(self._net):
            # A copy: the half may begin with a step in place.
            loss = F.cross_entropy(self._net(activation.clone()), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            check_finite(loss, [activation.grad, *(p.grad for p in self._net.parameters())], self._net)
        self._optimiser.step()
        return Heard(float(loss.detach()), activation.grad)

    def set_lr(self, lr: float) -> None:
        """See `Server.set_lr`."""
        self._optimiser.lr = lr

    def end_round(self, weights: Sequence[float]) -> None:
        """Do nothing: there is one network only."""

    def view(self, client: int) -> View:
        """See `Server.view`."""
        return self._net.state_dict()

    def load(self, view: View) -> None:
        """Take over parameters and statistics; Adam's moments stay."""
        self._net.load_state_dict(view)

    def tensors(self) -> dict[str, Tensor]:
        """See `Server.tensors`."""
        return {**self.view(0), **self._optimiser.moments()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Server.restore`."""
        self.load({name: t for name, t in tensors.items() if not name.startswith("adam/")})
        self._optimiser.restore(tensors)


class CopiesServer:
    """A network for each client, averaged after every round (SplitFed V1).

    Args:
        first: What all of them are at the start.
        clients: How many.
    """

    def __init__(self, first: PlainServer, clients: int) -> None:
        self._copies = [copy.deepcopy(first) for _ in range(clients)]

    def step(self, client: int, activation: Tensor, labels: Tensor) -> Heard:
        """See `Server.step`."""
        return self._copies[client].step(client, activation, labels)

    def set_lr(self, lr: float) -> None:
        """See `Server.set_lr`."""
        for one in self._copies:
            one.set_lr(lr)

    def end_round(self, weights: Sequence[float]) -> None:
        """Average the copies; their Adams keep their moments."""
        mean = average([one.view(0) for one in self._copies], weights)
        for one in self._copies:
            one.load(mean)

    def view(self, client: int) -> View:
        """See `Server.view`."""
        return self._copies[client].view(client)

    def tensors(self) -> dict[str, Tensor]:
        """See `Server.tensors`."""
        return {f"{i}/{name}": t for i, one in enumerate(self._copies) for name, t in one.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Server.restore`."""
        for i, one in enumerate(self._copies):
            own = {n.partition("/")[2]: t for n, t in tensors.items() if n.partition("/")[0] == str(i)}
            one.restore(own)


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of states; whole numbers, such as counts of batches, are the first one's."""
    total = WeightedSum()
    for state, weight in zip(states, weights, strict=True):
        total.add({name: t for name, t in state.items() if t.is_floating_point()}, weight)
    mean = total.mean() or {}
    return {name: mean[name].to(t.dtype) if name in mean else t.clone() for name, t in states[0].items()}


@contextmanager
def unharmed(net: nn.Module) -> Iterator[None]:
    """Give a network's norms their statistics back if what is done in here raises an error."""
    before = [b.clone() for b in net.buffers()]
    try:
        yield
    except Exception:
        with torch.no_grad():
            for buffer, old in zip(net.buffers(), before, strict=True):
                buffer.copy_(old)
        raise


def check_finite(loss: Tensor, gradients: Sequence[Tensor | None], net: nn.Module) -> None:
    """Check a step before it is taken: its loss, its gradients, and what the network's norms have noted.

    Raises:
        WireError: One of them is not finite.
    """
    noted = [b for b in net.buffers() if b.is_floating_point()]
    present = [*(g for g in gradients if g is not None), *noted]
    norm = torch.stack(torch._foreach_norm(present)).sum() if present else torch.zeros(())
    if not torch.isfinite(loss.detach() + norm):
        raise WireError(
            f"its loss is {float(loss.detach()):g}, or something that follows from it is not finite"
        )
