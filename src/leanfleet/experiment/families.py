"""The sections of an experiment file of which every family of methods has its own: `[fleet]` and `[training]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_serializer, field_validator, model_validator

from leanfleet.errors import ExperimentError
from leanfleet.experiment.base import Count, Positive, Section, Share, Text
from leanfleet.experiment.methods import Family
from leanfleet.fleet import parse_graph

Whole = Annotated[int, Field(ge=0)]


def _number_or_writers(value: Any) -> Any:
    if isinstance(value, str) and value != "writers":
        raise ValueError('should be a number, or "writers" for one device a writer')
    return None if value == "writers" else value


def check_increasing(milestones: Sequence[float]) -> None:
    """Check the order of milestones.

    Raises:
        ValueError: They do not increase.
    """
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"milestones = {list(milestones)}: should increase")


class FleetSection(Section):
    """`[fleet]`, what all families have in common; Rapp et al. 2022, "Results", with our decisions on time.

    Attributes:
        devices: Number of devices; None (in a file: "writers") is one a writer.
        availability: How the means of a device vary over time.
        ratio: Highest over lowest rate of a device.
        changes_per_round: Mean number of changes in `round_seconds` (lambda), for "exponential".
        trace: CSV file of recorded rates, for "trace".
        round_seconds: What gives rates their scale: at its best a device trains the whole network on all its samples
            in so many virtual seconds.
    """

    devices: Annotated[Count | None, BeforeValidator(_number_or_writers)] = 20
    availability: Literal["exponential", "constant", "uniform", "trace"] = "exponential"
    ratio: float = Field(4.0, ge=1)
    changes_per_round: float = Field(2.0, ge=0)
    trace: Path | None = None
    round_seconds: Positive = 1.0

    @field_serializer("devices")
    def _devices_in_toml(self, devices: int | None) -> int | str:
        return "writers" if devices is None else devices

    @model_validator(mode="after")
    def _trace_fits(self) -> Self:
        if self.availability == "trace" and self.trace is None:
            raise ValueError('availability = "trace": needs trace = "FILE.csv" too')
        if self.availability != "trace" and self.trace is not None:
            raise ValueError(f'availability = "{self.availability}": does not go with a trace')
        return self


class FederatedFleet(FleetSection):
    """`[fleet]` of the federated family; a round lasts `round_seconds`, and ends with the deadline.

    Attributes:
        per_round: Devices selected in a round.
        rule: How a device finds its budget for a mini-batch: from the time that is left, or from the moment's rate.
        margin: Share of the round that the pace rule keeps in reserve.
        late: Whether the finished steps of a late device count.
    """

    per_round: Count = 10
    rule: Literal["pace", "slot"] = "pace"
    margin: float = Field(0.05, ge=0, lt=1)
    late: Literal["partial", "discard"] = "partial"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.devices is not None and self.per_round > self.devices:
            raise ValueError(f"per_round = {self.per_round}: more than the {self.devices} devices")
        return self


class SplitFleet(FleetSection):
    """`[fleet]` of the split family; all its numbers are our decisions.

    Attributes:
        uplink_bytes_per_s: What a device can send in a virtual second.
        downlink_bytes_per_s: What a device can receive in a virtual second.
        latency_seconds: Virtual seconds a message is on its way, whatever its length.
        server_speed: The server's rate as a multiple of a device's best.
        iteration_seconds: A device whose activations do not arrive within so many virtual seconds misses the
            iteration; None waits for all.
        held_out: So many devices, the last ones, take no part: in the end they show what the run is worth to a
            client that it has never seen.
    """

    devices: Annotated[Count | None, BeforeValidator(_number_or_writers)] = 5
    availability: Literal["exponential", "constant", "uniform", "trace"] = "constant"
    round_seconds: Positive = 60.0
    uplink_bytes_per_s: Positive = 1.25e6
    downlink_bytes_per_s: Positive = 5e6
    latency_seconds: float = Field(0.02, ge=0)
    server_speed: Positive = 20.0
    iteration_seconds: Positive | None = None
    held_out: Whole = 0

    @model_validator(mode="after")
    def _some_train(self) -> Self:
        if self.devices is not None and self.held_out >= self.devices:
            raise ValueError(f"held_out = {self.held_out}: none of the {self.devices} devices would train")
        return self


class GossipFleet(FleetSection):
    """`[fleet]` of the gossip family: nodes, who sends to whom, and what links are like; numbers are our decisions.

    Attributes:
        graph: Who sends to whom: `leanfleet graph SPEC` draws it.
        uplink_bytes_per_s: What a node can send in a virtual second.
        latency_seconds: Virtual seconds a message is on its way, whatever its length.
        broadcast: Whether one transmission reaches all neighbours, as by radio; else there is one for each.
        loss_rate: Share of the messages that are lost.
        late_rate: Share of the messages that arrive an exchange later.
        double_rate: Share of the messages that arrive a second time, an exchange later.
        cuts: `[sender, receiver, first, last]`: a link that loses every message of these exchanges.
        absences: `[node, first, last]`: a node that does nothing in these exchanges, and then comes back; a `last` of
            -1 is for good.
        farewell: How a node leaves for good: it lets all know and hands over what it has to a neighbour, or takes it
            away; or it is gone at once, and its neighbours notice when their leases run out.
    """

    devices: Annotated[Count | None, BeforeValidator(_number_or_writers)] = 8
    availability: Literal["exponential", "constant", "uniform", "trace"] = "constant"
    round_seconds: Positive = 60.0
    graph: Text = "ring"
    uplink_bytes_per_s: Positive = 1.25e6
    latency_seconds: float = Field(0.02, ge=0)
    broadcast: bool = False
    loss_rate: float = Field(0.0, ge=0, lt=1)
    late_rate: float = Field(0.0, ge=0, lt=1)
    double_rate: float = Field(0.0, ge=0, lt=1)
    cuts: tuple[tuple[Whole, Whole, Whole, Whole], ...] = ()
    absences: tuple[tuple[Whole, Whole, int], ...] = ()
    farewell: Literal["handover", "withdraw", "crash"] = "handover"

    @field_validator("graph")
    @classmethod
    def _graph_is_known(cls, spec: str) -> str:
        try:
            parse_graph(spec)
        except ExperimentError as error:
            raise ValueError(str(error)) from None
        return spec

    @field_validator("cuts")
    @classmethod
    def _cuts_fit(cls, cuts: Sequence[tuple[int, int, int, int]]) -> Sequence[tuple[int, int, int, int]]:
        for cut in cuts:
            if cut[2] > cut[3]:
                raise ValueError(f"{list(cut)}: ends before it begins")
        return cuts

    @field_validator("absences")
    @classmethod
    def _absences_fit(cls, absences: Sequence[tuple[int, int, int]]) -> Sequence[tuple[int, int, int]]:
        for node, first, last in absences:
            if last != -1 and last < first:
                raise ValueError(f"{[node, first, last]}: ends before it begins; -1 is for good")
        leaving = [node for node, _, last in absences if last == -1]
        if len(set(leaving)) < len(leaving):
            raise ValueError("a node leaves for good only once")
        return absences

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.loss_rate + self.late_rate > 1:
            raise ValueError("loss_rate and late_rate: more than all messages")
        named = {i for cut in self.cuts for i in cut[:2]} | {absence[0] for absence in self.absences}
        if self.devices is not None and named and max(named) >= self.devices:
            raise ValueError(f"cuts and absences: no node {max(named)}; nodes are 0 to {self.devices - 1}")
        return self

    @property
    def graph_file(self) -> Path | None:
        """The file of the graph, where it is one."""
        return parse_graph(self.graph)[0].path

    @property
    def departures(self) -> dict[int, int]:
        """Nodes that leave for good, and from which exchange on they are gone."""
        return {node: first for node, first, last in self.absences if last == -1}

    @property
    def loses(self) -> bool:
        """Whether links may lose, delay or double a message."""
        crashes = self.farewell == "crash" and bool(self.departures)
        comes_back = any(last != -1 for _, _, last in self.absences)
        rates = self.loss_rate or self.late_rate or self.double_rate
        return bool(rates or self.cuts or comes_back or crashes)


class FederatedTraining(Section):
    """`[training]` of the federated family; defaults as in later code of the authors of Rapp et al. 2022.

    Attributes:
        lr: Learning rate at the start.
        momentum: Heavy-ball momentum.
        weight_decay: L2 penalty.
        batch_size: Samples of a mini-batch.
        epochs: Times a device goes through its samples in a round.
        milestones: Shares of the rounds after which the learning rate is multiplied by `gamma` once more.
        gamma: See `milestones`.
        clip_norm: Largest norm of a step's gradient; None does not clip.
    """

    lr: Positive = 0.1
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(1e-3, ge=0)
    batch_size: Count = 32
    epochs: Count = 1
    milestones: tuple[Share, ...] = (0.6, 0.8)
    gamma: Share = 0.1
    clip_norm: Positive | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_increasing(self.milestones)
        return self


class SplitTraining(Section):
    """`[training]` of the split family: Adam on a cosine schedule (AdaSplit's public code).

    Attributes:
        lr: Learning rate at the start.
        weight_decay: L2 penalty, added to the gradient.
        batch_size: Samples of a mini-batch.
        iterations: Mini-batches of every client in a round; None is one epoch of the client with the most samples.
    """

    lr: Positive = 1e-3
    weight_decay: float = Field(1e-5, ge=0)
    batch_size: Count = 32
    iterations: Count | None = None


class GossipTraining(Section):
    """`[training]` of the gossip family; defaults are those of the author's later trainer (Aketi et al. 2021).

    Attributes:
        lr: Learning rate at the start.
        momentum: Heavy-ball momentum.
        nesterov: Whether the step looks ahead along the momentum.
        weight_decay: L2 penalty.
        batch_size: Samples of a mini-batch.
        iterations: Mini-batches of every node in a round; None is one epoch of the node with the most samples.
        milestones: Shares of the rounds after which the learning rate is multiplied by `gamma` once more.
        gamma: See `milestones`.
    """

    lr: Positive = 0.1
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(1e-4, ge=0)
    batch_size: Count = 32
    iterations: Count | None = None
    milestones: tuple[Share, ...] = (0.5, 0.75)
    gamma: Share = 0.1

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_increasing(self.milestones)
        return self


FAMILIES: Final[dict[Family, dict[str, type[Section]]]] = {
    "federated": {"fleet": FederatedFleet, "training": FederatedTraining},
    "split": {"fleet": SplitFleet, "training": SplitTraining},
    "gossip": {"fleet": GossipFleet, "training": GossipTraining},
}
"""The models of these sections, by family."""
