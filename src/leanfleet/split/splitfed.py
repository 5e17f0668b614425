"""SplitFed: split learning in parallel, with the clients' halves averaged after every round."""

from __future__ import annotations

from typing import Literal

import torch

from leanfleet.split.client import Client
from leanfleet.split.method import SplitMethod, SplitOptions
from leanfleet.split.server import CPU, CopiesServer, PlainServer, Server


class SplitFedOptions(SplitOptions):
    """SplitFed's keys in `[method]`.

    Attributes:
        version: 1: the server has a copy for every client and averages them too. 2: one network for all, which hears
            the clients in random order.
    """

    version: Literal[1, 2] = 1


class SplitFed(SplitMethod[SplitFedOptions]):
    """SplitFed V1 and V2 (Thapa et al. 2022); averages are weighted by samples."""

    name = "splitfed"
    Options = SplitFedOptions
    averages = True

    def order(self, clients: list[int], generator: torch.Generator) -> list[int]:
        """Return a random order for version 2; for version 1 it makes no difference."""
        if self.options.version == 1:
            return sorted(clients)
        return [clients[i] for i in torch.randperm(len(clients), generator=generator)]

    def client(self) -> Client:
        """See `SplitMethod.client`."""
        s = self.setting
        return Client(self.client_half(), listens=True, lr=s.lr, weight_decay=s.weight_decay)

    def server(self, device: torch.device = CPU) -> Server:
        """See `SplitMethod.server`."""
        s = self.setting
        first = PlainServer(self.server_half().to(device), lr=s.lr, weight_decay=s.weight_decay, replies=True)
        return CopiesServer(first, s.clients) if self.options.version == 1 else first
