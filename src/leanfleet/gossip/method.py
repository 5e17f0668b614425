"""What a gossip method is: nodes that train and mix over a graph; it never knows where they run."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Generic, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfleet.errors import ExperimentError
from leanfleet.fleet import Graph, check_connected, final_rounds
from leanfleet.gossip.costs import authors_bytes, sent_values
from leanfleet.gossip.descent import Loss, Sgd, Training
from leanfleet.gossip.node import Node
from leanfleet.gossip.options import LARGE_ETA, CompressionOptions, GossipOptions, PushSumOptions
from leanfleet.gossip.routes import neighbours, one_way_link, without
from leanfleet.gossip.rules import Rule
from leanfleet.gossip.sums import RunningSums

# More dense exchanges than these should have another graph (our decision).
_MANY_ROUNDS = 500


@dataclass(frozen=True, eq=False)
class Setting:
    """What every gossip method is told about the run.

    Attributes:
        net: The network at its start, the same for all nodes; any module.
        graph: Who sends to whom, each phase for one step.
        steps: Training steps of every node, T.
        sgd: Local training.
        seed: Seed of the run.
        loss: What is minimised.
        loss_rate: Share of the messages that links lose.
        late_rate: Share of the messages that arrive an exchange later.
        lossy: Whether links lose messages at all, be it for a time only.
        recorded: Whether the graph is a recording, whose times are taken as they are.
        departures: Nodes that leave for good, and from which exchange on they are gone.
        announced: Whether the others know of it, and give them nothing from then on; else they crash, and leases
            must show it.
    """

    net: nn.Module
    graph: Graph
    steps: int
    sgd: Sgd = field(default_factory=Sgd)
    seed: int = 0
    loss: Loss = F.cross_entropy
    loss_rate: float = 0.0
    late_rate: float = 0.0
    lossy: bool = False
    recorded: bool = False
    departures: Mapping[int, int] = field(default_factory=dict)
    announced: bool = True


O = TypeVar("O", bound=GossipOptions)  # noqa: E741
C = TypeVar("C", bound=CompressionOptions)


class GossipMethod(ABC, Generic[O]):
    """The seam between a gossip method and every engine.

    Iterations 0 to T - 1 are training steps, each with an exchange if `exchanges`; then come `final_rounds`
    exchanges without training, before which `begin_final` is called on every node.

    Attributes:
        family: Who talks to whom.
        name: Its name in an experiment file.
        resources: Every node has its own means.
        weighted: Whether there are push-sum weights.
        combine_first: Whether a local step is applied after mixing.
    """

    family: ClassVar[Literal["gossip"]] = "gossip"
    name: ClassVar[str]
    Options: ClassVar[type[GossipOptions]] = GossipOptions
    resources: ClassVar[Literal["own"]] = "own"
    weighted: ClassVar[bool] = True
    combine_first: ClassVar[bool] = False

    def __init__(self, setting: Setting, options: O) -> None:
        """Check that the graph fits.

        Raises:
            ExperimentError: It is not connected, also when nodes have left, or not of the kind that the method needs.
            NetworkError: The network's parameters are of several dtypes.
        """
        self.setting, self.options = setting, options
        net = copy.deepcopy(setting.net).train()
        self.training = Training(net, setting.loss, setting.sgd, setting.seed)
        self.check()
        check_connected(setting.graph)
        # The graph of those that stay.
        self.lasting = without(setting.graph, setting.departures)

    def on(self, device: torch.device) -> Self:
        """Return the same method, whose nodes live and compute on a device."""
        net = copy.deepcopy(self.setting.net).to(device)
        return type(self)(replace(self.setting, net=net), self.options)

    def check(self) -> None:
        """Check that the graph is of the kind the method needs.

        Raises:
            ExperimentError: It is not.
        """
        if not self.weighted and not self.setting.graph.doubly_stochastic:
            raise ExperimentError(
                f"{self.name} on graph '{self.setting.graph.name}': nodes that receive more or less than they send "
                "need push-sum weights; take a regular graph, such as undirected-ring, or sgp or sparse-push"
            )
        if self.setting.departures and not isinstance(self.options, PushSumOptions):
            raise ExperimentError(
                f"[fleet] absences: {self.name} cannot go on when a node has left for good; take sgp, sparse-push "
                "or scsp"
            )

    @property
    def eta(self) -> float:
        """The consensus step while training."""
        return 1.0

    @abstractmethod
    def rule(self) -> Rule:
        """Return a node's mixing rule, at its start."""

    def running_sums(self) -> RunningSums | None:
        """Return a node's running sums, at their start; None where links are trusted."""
        return None

    def node(self, number: int) -> Node:
        """Return a node at its start; all start with the same model."""
        return Node(
            number,
            self.training,
            self.rule(),
            weighted=self.weighted,
            sums=self.running_sums(),
            quasi_global=self.options.quasi_global,
            combine_first=self.combine_first,
        )

    @cached_property
    def graph(self) -> Graph:
        """The graph while training, a step of it for every exchange."""
        graph = self.setting.graph
        free = len(graph.phases) > 1 and not self.setting.recorded
        default = max(1, round(1 / self.eta)) if free else graph.hold_steps
        return graph.held(self.options.graph_period or default)

    def exchanges(self, iteration: int) -> bool:
        """Return whether nodes exchange after an iteration."""
        return iteration >= self.setting.steps or (iteration + 1) % self.options.exchange_every == 0

    def exchange(self, iteration: int) -> int:
        """Return the number, from 0, of the exchange that an iteration ends with or leads to."""
        steps, every = self.setting.steps, self.options.exchange_every
        return iteration // every if iteration < steps else steps // every + iteration - steps

    def column(self, iteration: int, node: int) -> dict[int, float]:
        """Return the weights p_ij of sender j = `node` in an iteration: of its own share and of every receiver."""
        graph, step = self._phase(iteration)
        column, gone = graph.column(step, node), self._gone(iteration)
        there = {j: p for j, p in column.items() if j not in gone}
        total = math.fsum(there.values()) if len(there) < len(column) else 1.0
        return {j: p / total for j, p in there.items()}

    def in_neighbours(self, iteration: int, node: int) -> tuple[int, ...]:
        """Return who sends to a node in an iteration."""
        graph, step = self._phase(iteration)
        gone = self._gone(iteration)
        return tuple(j for j in graph.in_neighbours(step, node) if j not in gone)

    def neighbours(self, node: int) -> tuple[list[int], list[int]]:
        """Return who sends to a node at any time, and to whom it sends."""
        return neighbours(self.setting.graph, node)

    def _gone(self, iteration: int) -> set[int]:
        """Return who is known to have left for good."""
        exchange = self.exchange(iteration)
        known = self.setting.departures if self.setting.announced else {}
        return {node for node, since in known.items() if exchange >= since}

    def _phase(self, iteration: int) -> tuple[Graph, int]:
        exchange = self.exchange(iteration)
        if iteration < self.setting.steps:
            return self.graph, exchange
        # The final rounds' own sequence of graphs, unless time cannot be turned back.
        return self.setting.graph, exchange if self.setting.recorded else iteration - self.setting.steps

    def final_rounds(self) -> int:
        """Return how many exchanges without training end the run, R.

        Raises:
            ExperimentError: No number of them makes nodes agree.
        """
        setting, options = self.setting, self.options
        if options.final_rounds != "auto":
            return options.final_rounds
        return final_rounds(self.lasting, options.tolerance, setting.loss_rate, setting.late_rate)

    def begin_final(self, node: Node) -> None:
        """Prepare a node for the final rounds."""
        node.merge(self.options.reset_weights)

    def logits(self, model: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return what a node's network says, [N, classes], as it is used.

        Args:
            model: As `Node.model` returns it.
            x: [N, ...] inputs.
        """
        return self.training.logits(model, x)

    @property
    def sent_share(self) -> float:
        """Share of the values that a message holds while training; what rounds them sends all."""
        return 1.0

    def values_per_message(self) -> int:
        """Return how many values a message holds while training."""
        return sent_values(self.training.layout.sizes, self.sent_share)

    def authors_bytes(self, final: bool = False) -> int:
        """Return the bytes of a message as Sparse-Push's author counts them, also for other compressors."""
        return authors_bytes(self.training.layout.sizes, 1.0 if final else self.sent_share)

    def warnings(self) -> list[str]:
        """Return what a user should hear before the run: a line each."""
        found, rounds = list[str](), self.final_rounds()
        lossy = self.setting.lossy or self.setting.loss_rate > 0
        if lossy and self.running_sums() is None:
            found.append(
                f"{self.name}: links lose or double messages, and what they hold is lost for good or counts twice: "
                "averages drift, and training may diverge; set [method] running_sums = true, which sgp, sparse-push "
                "and scsp have"
            )
        if rounds > _MANY_ROUNDS:
            found.append(
                f"{self.name}: graph '{self.setting.graph.name}' needs {rounds} dense final rounds; take one that "
                "mixes faster, such as exponential"
            )
        return found


class Compressing(GossipMethod[C]):
    """A method with a compressor and a consensus step."""

    @property
    def eta(self) -> float:
        """As the options have it."""
        return self.options.consensus_step

    @property
    def sent_share(self) -> float:
        """See `GossipMethod.sent_share`."""
        return self.options.density if self.options.compressor in ("top-k", "random-k") else 1.0

    def warnings(self) -> list[str]:
        """See `GossipMethod.warnings`."""
        found = super().warnings()
        if self.options.eta_ratio > LARGE_ETA:
            found.append(
                f"{self.name}: eta = {self.eta:g} is {self.options.eta_ratio:g} times the density; above twice the "
                "density nodes hardly agree, or diverge"
            )
        return found


def check_links(method: GossipMethod[O], options: PushSumOptions) -> None:
    """Check that what options expect to come back can come back, and that those who crash are missed.

    Raises:
        ExperimentError: It cannot, or they are not.
    """
    wanted = "lease" if options.lease is not None else 'repair = "ack"' if options.repair == "ack" else None
    link = one_way_link(method.setting.graph) if wanted else None
    if link is not None:
        raise ExperimentError(
            f"[method] {wanted}: on graph '{method.setting.graph.name}' node {link[0]} never hears of node {link[1]}, "
            'to which it sends; take a graph with links both ways, such as undirected-ring, or repair = "repeat"'
        )
    if wanted and one_way_link(method.setting.graph, at_once=True):
        if options.repair == "ack":
            raise ExperimentError(
                f"[method] repair = \"ack\": on graph '{method.setting.graph.name}' answers come steps later, and all "
                'would be sent again; take a graph whose links go both ways at every step, or repair = "repeat"'
            )
        around = method.graph.period
        if options.lease is not None and options.lease <= around:
            raise ExperimentError(
                f"[method] lease = {options.lease}: on graph '{method.setting.graph.name}' an answer may take {around} "
                "exchanges; set it above that, or take a graph whose links go both ways at every step"
            )
    if method.setting.departures and not method.setting.announced and options.lease is None:
        raise ExperimentError(
            '[fleet] farewell = "crash": nobody would notice; set [method] lease, after how many messages without an '
            "answer a neighbour counts as gone"
        )


def running_sums(method: GossipMethod[O], options: PushSumOptions) -> RunningSums | None:
    """Return running sums as options and links want them."""
    lossy = method.setting.lossy or method.setting.loss_rate > 0
    if options.running_sums is False or (options.running_sums is None and not lossy):
        return None
    return RunningSums(method.training.layout, options.repair, options.lease)
