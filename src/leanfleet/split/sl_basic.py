"""Plain split learning: every client sends at every mini-batch, and waits for the gradient."""

from __future__ import annotations

from typing import Literal

import torch

from leanfleet.split.client import Client
from leanfleet.split.method import SplitMethod, SplitOptions
from leanfleet.split.server import CPU, PlainServer, Server


class SLBasicOptions(SplitOptions):
    """SL-basic's keys in `[method]`.

    Attributes:
        client_nets: Whether every client keeps a half of its own, or hands it over to the next one after every
            step (Gupta and Raskar 2018).
    """

    client_nets: Literal["private", "handover"] = "private"


class SLBasic(SplitMethod[SLBasicOptions]):
    """Split learning in which clients take turns, mini-batch by mini-batch (Gupta and Raskar 2018)."""

    name = "sl-basic"
    Options = SLBasicOptions

    @property
    def in_turn(self) -> bool:
        """Clients take turns."""
        return True

    @property
    def handover(self) -> bool:
        """As the options have it."""
        return self.options.client_nets == "handover"

    def client(self) -> Client:
        """See `SplitMethod.client`."""
        s = self.setting
        return Client(self.client_half(), listens=True, lr=s.lr, weight_decay=s.weight_decay)

    def server(self, device: torch.device = CPU) -> Server:
        """See `SplitMethod.server`."""
        s = self.setting
        return PlainServer(self.server_half().to(device), lr=s.lr, weight_decay=s.weight_decay, replies=True)
