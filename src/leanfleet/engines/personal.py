"""The networks of a trained split run: one a client, and one for a client that has never been seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor, nn

from leanfleet.engines.center import named
from leanfleet.engines.client_data import stats
from leanfleet.engines.job import SplitJob
from leanfleet.errors import UserError
from leanfleet.runs import Checkpoint
from leanfleet.split.masked import MaskedServer
from leanfleet.split.server import Server, average

Who = int | Literal["new"]
"""A client by its number, or one that has never been seen."""

NEW: Final = "new"


class Whole(nn.Module):
    """Both halves of a network, and what stands between them.

    Args:
        client: The client's half.
        entry: What the server puts activations through first.
        server: The server's half.
    """

    def __init__(self, client: nn.Module, entry: nn.Module, server: nn.Module) -> None:
        super().__init__()
        self.client, self.entry, self.server = client, entry, server

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        logits: Tensor = self.server(self.entry(self.client(x)))
        return logits

    def named_state(self) -> dict[str, Tensor]:
        """Return parameters and statistics by the names that they have in the network that was cut."""
        return {**self.client.state_dict(), **self.server.state_dict()}


def parse_who(text: str, clients: int) -> Who:
    """Return which client is meant.

    Raises:
        UserError: There is none such.
    """
    if text == NEW:
        return "new"
    if not text.isdecimal() or int(text) >= clients:
        raise UserError(f"--client {text}: there are clients 0 to {clients - 1}, and 'new'")
    return int(text)


def network_of(job: SplitJob, checkpoint: Checkpoint, who: Who) -> Whole:
    """Return a client's network as it is used, see `assemble`."""
    server = job.method.server()
    server.restore(named(checkpoint.tensors, "server/"))
    return assemble(job, server, named(checkpoint.tensors, "clients/"), who)


def assemble(job: SplitJob, server: Server, clients: Mapping[str, Tensor], who: Who) -> Whole:
    """Return a client's network as it is used.

    A client that has never been seen gets the mean of all clients' halves, weighted by their samples, and of all
    their masks (our decision).

    Args:
        job: What was run.
        server: Its server.
        clients: States of all clients, by `CLIENT/NAME`.
        who: Whose network.
    """
    if who == "new":
        everyone = range(job.devices)
        weights = [float(len(job.parts[i])) for i in everyone]
        half = average([_half(clients, i) for i in everyone], weights)
        view = server.unseen() if isinstance(server, MaskedServer) else server.view(0)
    else:
        half, view = _half(clients, who), server.view(who)
    whole = Whole(job.method.client_half(), job.method.entry(), job.method.server_half())
    with torch.no_grad():
        whole.client.load_state_dict(half)
        # A view has all statistics, also those that a network does not save.
        whole.server.load_state_dict(view, strict=False)
    return whole.eval().requires_grad_(False)


def stats_of(job: SplitJob, who: Who) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation by which a client's images are normalised."""
    return (job.data.mean, job.data.std) if who == "new" else stats(job, who)


def _half(clients: Mapping[str, Tensor], client: int) -> dict[str, Tensor]:
    return named(clients, f"{client}/net.")
