"""What a split method is: two halves that train in steps over messages; it never knows where they run."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import nn
from torch.func import functional_call

from leanfleet.errors import NetworkError
from leanfleet.ledger import PHI
from leanfleet.options import Options
from leanfleet.split.client import Client
from leanfleet.split.cut import Cut
from leanfleet.split.orchestrator import All, Orchestrator
from leanfleet.split.server import CPU, Server, View
from leanfleet.wire import Values


class SplitOptions(Options):
    """The keys in `[method]` that all split methods have.

    Attributes:
        cut: Where the network is cut: how many layers of a sequential network the client holds, or the name of a
            layer or node. `leanfleet nets NET --cut` lists the places.
        values: How activations and gradients cross: as they are, or rounded.
    """

    cut: int | str = 1
    values: Values = "exact"


@dataclass(frozen=True, eq=False)
class Setting:
    """What every split method is told about the run, on the server and on the clients.

    Attributes:
        cut: The network in two halves, at its start.
        clients: Number of clients.
        classes: Number of classes.
        rounds: Rounds of the run.
        iterations: Mini-batches of every client in a round.
        lr: Learning rate at the start.
        weight_decay: L2 penalty, added to the gradient (Adam, not AdamW).
        batch_size: Samples of a mini-batch.
        seed: Seed of the run.
    """

    cut: Cut
    clients: int
    classes: int
    rounds: int
    iterations: int
    lr: float
    weight_decay: float
    batch_size: int
    seed: int


class Macs(NamedTuple):
    """MACs per sample that a step costs.

    Attributes:
        forward: Forward MACs per sample.
        training: Training MACs per sample: three times as many, or as many where nothing is trained.
    """

    forward: int
    training: int


O = TypeVar("O", bound=SplitOptions)  # noqa: E741


class SplitMethod(ABC, Generic[O]):
    """The seam between a split method and every engine.

    Args:
        setting: What it is told about the run.
        options: Its keys in `[method]`.

    Raises:
        NetworkError: The network gives too few logits, or the method cannot do with what crosses the cut.

    Attributes:
        family: Who talks to whom.
        name: Its name in an experiment file.
        resources: Every client has its own means.
        averages: Whether the clients' halves are averaged after every round.
    """

    family: ClassVar[Literal["split"]] = "split"
    name: ClassVar[str]
    Options: ClassVar[type[SplitOptions]] = SplitOptions
    resources: ClassVar[Literal["own"]] = "own"
    averages: ClassVar[bool] = False

    def __init__(self, setting: Setting, options: O) -> None:
        self.setting = setting
        self.options = options
        if setting.cut.outputs < setting.classes:
            raise NetworkError(
                f"the network gives {setting.cut.outputs} outputs; {setting.classes} classes need as many"
            )
        # One is enough to know what all of them cost.
        self._client = self.client()

    @property
    def personal(self) -> bool:
        """Whether the server's half differs from client to client when it is used."""
        return False

    @property
    def in_turn(self) -> bool:
        """Whether clients take turns within an iteration."""
        return False

    @property
    def handover(self) -> bool:
        """Whether each client gives its half to the next one after every step."""
        return False

    @property
    def selection_window(self) -> int:
        """Iterations from one selection to the next."""
        return 1

    def local_rounds(self) -> int:
        """Return how many rounds at the start need no server at all."""
        return 0

    def lr_at(self, round: int) -> float:
        """Return the learning rate of a round: a cosine over R + 2 rounds, which rests in the local phase."""
        steps = max(0, round - self.local_rounds())
        return self.setting.lr * (1 + math.cos(math.pi * steps / (self.setting.rounds + 2))) / 2

    def orchestrator(self) -> Orchestrator:
        """Return what chooses the clients that talk to the server, at its start: here all of them."""
        return All(self.setting.clients)

    def selected(self) -> int:
        """Return how many clients talk to the server in an iteration."""
        return self.setting.clients

    @abstractmethod
    def client(self) -> Client:
        """Return a client at its start; all start alike."""

    @abstractmethod
    def server(self, device: torch.device = CPU) -> Server:
        """Return the server at its start.

        Args:
            device: Where it computes, and where what it is given must be.
        """

    def client_macs(self, *, sends: bool, answered: bool = True) -> Macs:
        """Return what a step costs a client for every sample.

        Args:
            sends: Whether its activations go to the server.
            answered: Whether the server's gradient came back, where the client listens.
        """
        client = self._client
        forward = self.setting.cut.client_macs + client.head_macs
        if client.learns_alone or (client.listens and sends and answered):
            return Macs(forward, PHI * forward)
        return Macs(forward, forward) if sends else Macs(0, 0)

    def server_macs(self) -> Macs:
        """Return what a step costs the server for every sample."""
        forward = self.setting.cut.server_macs
        return Macs(forward, PHI * forward)

    def order(self, clients: list[int], generator: torch.Generator) -> list[int]:
        """Return the order in which the server hears the clients of an iteration: by number."""
        return sorted(clients)

    @property
    def listens(self) -> bool:
        """Whether clients that send wait for a gradient."""
        return self._client.listens

    @property
    def learns_alone(self) -> bool:
        """Whether clients train without the server."""
        return self._client.learns_alone

    def entry(self) -> nn.Module:
        """Return what activations go through before the server's half: here nothing."""
        return nn.Identity()

    def logits(self, view: View, activation: torch.Tensor) -> torch.Tensor:
        """Return what the server's half says, as it is used.

        Args:
            view: What a client is served with.
            activation: [N, ...].
        """
        entry, half = self._served
        found: torch.Tensor = functional_call(half, view, (entry(activation),))
        return found

    def client_half(self) -> nn.Module:
        """Return a copy of the client's half at its start."""
        return copy.deepcopy(self.setting.cut.client)

    def server_half(self) -> nn.Module:
        """Return a copy of the server's half at its start."""
        return copy.deepcopy(self.setting.cut.server)

    @cached_property
    def _served(self) -> tuple[nn.Module, nn.Module]:
        return self.entry(), self.server_half().eval()
