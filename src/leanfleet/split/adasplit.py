"""AdaSplit: clients train on a loss of their own, a bandit chooses whom the server hears, masks make it personal."""

from __future__ import annotations

import copy
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from leanfleet.randomness import key, torch_generator
from leanfleet.split.client import Client, LocalLoss
from leanfleet.split.costs import local_rounds, talkers
from leanfleet.split.heads import EMBEDDING, head_macs, local_head
from leanfleet.split.masked import MaskedServer, MaskSetting, Scope
from leanfleet.split.method import SplitMethod, SplitOptions
from leanfleet.split.ntxent import ntxent
from leanfleet.split.orchestrator import SELECTIONS, Orchestrator
from leanfleet.split.server import CPU, PlainServer, Server


class AdaSplitOptions(SplitOptions):
    """AdaSplit's keys in `[method]`; defaults as in the first author's code, but for `client_nets`.

    Attributes:
        kappa: Share of the rounds, at the start, in which nothing is sent.
        eta: Share of the clients that the server hears in an iteration afterwards; at least one.
        selection: Who they are: by the bandit, at random, all, or in turn.
        selection_window: Iterations from one selection to the next.
        gamma: Discount of the bandit (0.87 is commonly cited for the paper).
        masks: One number a weight, one an output channel (ours), or none.
        mask_penalty: Weight of the sum of all masks (lambda).
        mask_scope: Whose masks it shrinks: all clients', or those of the client in the batch (ours).
        local_loss: What clients train on by themselves: the paper's contrastive loss; the cross entropy of an
            auxiliary classifier behind their half (Mu and Shen 2023); or nothing, then their half stays as it is
            (unless `server_grad`).
        head: Whether a projection head stands before the contrastive loss.
        temperature: Of the contrastive loss (tau).
        activation_l1: Weight of the activations' L1 norm, summed over batch and units.
        server_grad: Whether clients that are heard get the gradient of the cross entropy too.
        client_nets: Whether every client keeps a half of its own (our decision), or hands it over to the next one
            after every step (the author's code).
    """

    kappa: float = Field(0.6, ge=0, le=1)
    eta: float = Field(0.6, ge=0, le=1)
    selection: Literal["ucb", "random", "all", "round_robin"] = "ucb"
    selection_window: int = Field(1, ge=1)
    gamma: float = Field(0.75, gt=0, lt=1)
    masks: Literal["weight", "channel", "none"] = "weight"
    mask_penalty: float = Field(1e-3, ge=0)
    mask_scope: Scope = "all"
    local_loss: Literal["ntxent", "aux_ce", "none"] = "ntxent"
    head: bool = True
    temperature: float = Field(0.07, gt=0)
    activation_l1: float = Field(0.0, ge=0)
    server_grad: bool = False
    client_nets: Literal["private", "handover"] = "private"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.activation_l1 and self.local_loss == "none":
            raise ValueError("activation_l1: does not go with local_loss = none")
        if self.local_loss == "aux_ce" and not self.head:
            raise ValueError("local_loss = aux_ce: the auxiliary classifier is a head; leave head = true")
        return self


class AdaSplit(SplitMethod[AdaSplitOptions]):
    """AdaSplit (Chopra et al. 2021), as the first author's public code has it; all its ablations are options.

    In the first rounds clients train alone, on a contrastive loss of the activations at the cut. In the others the
    server also hears a few of them, chosen anew at every iteration, and trains its half by cross entropy, through
    the client's own masks; nothing comes back.
    """

    name = "adasplit"
    Options = AdaSplitOptions

    @property
    def personal(self) -> bool:
        """With masks every client is served with weights of its own."""
        return self.options.masks != "none"

    @property
    def in_turn(self) -> bool:
        """A half that is handed over is with one client at a time."""
        return self.handover

    @property
    def handover(self) -> bool:
        """As the options have it."""
        return self.options.client_nets == "handover"

    @property
    def selection_window(self) -> int:
        """As the options have it."""
        return self.options.selection_window

    def local_rounds(self) -> int:
        """Return floor(kappa * R)."""
        return local_rounds(self.options.kappa, self.setting.rounds)

    def orchestrator(self) -> Orchestrator:
        """See `SplitMethod.orchestrator`."""
        return SELECTIONS[self.options.selection](self.setting.clients, self.options.gamma)

    def selected(self) -> int:
        """Return max(1, round(eta * N))."""
        return talkers(self.options.eta, self.setting.clients)

    def client(self) -> Client:
        """See `SplitMethod.client`."""
        o, s = self.options, self.setting
        losses: dict[str, LocalLoss | None] = {
            "ntxent": partial(ntxent, temperature=o.temperature),
            "aux_ce": F.cross_entropy,
            "none": None,
        }
        outputs = s.classes if o.local_loss == "aux_ce" else EMBEDDING
        headed = o.local_loss != "none" and o.head
        return Client(
            self.client_half(),
            head=self._head(outputs) if headed else None,
            head_macs=head_macs(s.cut.shape, outputs) if headed else 0,
            loss=losses[o.local_loss],
            listens=o.server_grad,
            lr=s.lr,
            weight_decay=s.weight_decay,
            activation_l1=o.activation_l1,
        )

    def server(self, device: torch.device = CPU) -> Server:
        """See `SplitMethod.server`."""
        o, s = self.options, self.setting
        net = self.server_half().to(device)
        if o.masks == "none":
            return PlainServer(net, lr=s.lr, weight_decay=s.weight_decay, replies=o.server_grad)
        return MaskedServer(
            net,
            MaskSetting(s.clients, o.masks, o.mask_penalty, o.mask_scope),
            lr=s.lr,
            weight_decay=s.weight_decay,
            replies=o.server_grad,
            entry=self.entry(),
            generator=torch_generator(s.seed, "masks"),
        )

    def entry(self) -> nn.Module:
        """Return the norm that ends a convolutional layer of LeNet: a server with masks applies it once more."""
        norms = [m for m in self.setting.cut.client.modules() if isinstance(m, nn.LocalResponseNorm)]
        again = self.personal and norms and len(self.setting.cut.shape) > 1
        return copy.deepcopy(norms[-1]) if again else nn.Identity()

    def _head(self, outputs: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(self.setting.seed, "head"))
            return local_head(self.setting.cut.shape, outputs)
