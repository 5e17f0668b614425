"""From an experiment to what an engine runs: data, devices, network, method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from leanfleet import federated, gossip, split
from leanfleet.data import DataSet, load, partition
from leanfleet.engines.network import check_classifies, check_takes_one, network, trace
from leanfleet.errors import ExperimentError
from leanfleet.experiment import (
    Experiment,
    Family,
    FederatedFleet,
    FederatedTraining,
    FleetSection,
    GossipFleet,
    GossipTraining,
    SplitFleet,
    SplitTraining,
)
from leanfleet.fleet import Availability, AvailabilityConfig, availability, build_graph
from leanfleet.ledger import PHI
from leanfleet.nets import NETWORKS, VotingEnsemble
from leanfleet.nets.layout import images, take_channels_last
from leanfleet.split.counting import counted


@dataclass(frozen=True)
class Parts:
    """Which samples each device holds: indices only, laid end to end.

    Attributes:
        indices: int64 [samples held by any device].
        ends: int64 [devices]; where each device's stretch of `indices` ends.
    """

    indices: Tensor
    ends: Tensor

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Parts:
        """Lay the devices' indices end to end."""
        ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        return cls(torch.cat(list(parts)), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def sizes(self) -> Tensor:
        """Samples of every device, int64 [devices]."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1))

    def __getitem__(self, device: int) -> Tensor:
        start = int(self.ends[device - 1]) if device else 0
        return self.indices[start : int(self.ends[device])]


@dataclass(frozen=True)
class Job:
    """What is fixed for a run of any family, the same in every process.

    Attributes:
        experiment: What the file says.
        data: Training and test samples.
        parts: Which training samples each device holds.
        net: The network the method trains, at its start.
        availability: How the fleet's means vary, for this method.
        macs: Forward MACs per sample of the reference network, whole and with half of its filters.
    """

    experiment: Experiment
    data: DataSet
    parts: Parts
    net: nn.Module
    availability: AvailabilityConfig
    macs: tuple[float, float]

    @property
    def devices(self) -> int:
        """How many devices train."""
        return len(self.parts)

    def samples(self, device: int) -> int:
        """Return how many samples a device processes in a round."""
        return len(self.parts[device])

    def means(self, device: int) -> Availability:
        """Return what a device can spend over time, training MAC/s."""
        full, half = self.macs
        return availability(
            self.availability,
            macs_full=full,
            macs_half=half,
            samples=self.samples(device),
            seed=self.experiment.experiment.seed,
            device=device,
        )


@dataclass(frozen=True)
class FederatedJob(Job):
    """A run of the federated family.

    Attributes:
        fleet: `[fleet]`.
        training: `[training]`.
        method: The method.
    """

    fleet: FederatedFleet
    training: FederatedTraining
    method: federated.Method[Any, Any]

    def samples(self, device: int) -> int:
        """Return how many samples a device processes in a round, over all local epochs."""
        return len(self.parts[device]) * self.training.epochs


@dataclass(frozen=True)
class SplitJob(Job):
    """A run of the split family.

    Attributes:
        fleet: `[fleet]`.
        training: `[training]`.
        method: The method.
    """

    fleet: SplitFleet
    training: SplitTraining
    method: split.SplitMethod[Any]

    @property
    def devices(self) -> int:
        """How many devices train; the others are held out."""
        return self.method.setting.clients

    @property
    def iterations(self) -> int:
        """Mini-batches of every client in a round."""
        return self.method.setting.iterations

    @property
    def best_rate(self) -> float:
        """The rate of a device at its best, training MAC/s."""
        return PHI * self.macs[0] * self.samples(0) / self.fleet.round_seconds

    def samples(self, device: int) -> int:
        """Return how many samples a device processes in a round: as many as any other, its own over and over."""
        return self.iterations * self.training.batch_size


@dataclass(frozen=True)
class GossipJob(Job):
    """A run of the gossip family.

    Attributes:
        fleet: `[fleet]`.
        training: `[training]`.
        method: The method.
        iterations: Mini-batches of every node in a round.
    """

    fleet: GossipFleet
    training: GossipTraining
    method: gossip.GossipMethod[Any]
    iterations: int

    def samples(self, device: int) -> int:
        """Return how many samples a device processes in a round: as many as any other, its own over and over."""
        return self.iterations * self.training.batch_size


AnyJob = FederatedJob | SplitJob | GossipJob


def make_job(experiment: Experiment, data: DataSet | None = None, parts: Parts | None = None) -> AnyJob:
    """Build data, devices, network and method.

    Args:
        experiment: What to run.
        data: The data set, if it is not the one the experiment names (a worker's, or one made in Python).
        parts: The partition, if it is already made.

    Raises:
        UserError: The experiment cannot be run as it is.
    """
    data = data or load_data(experiment)
    parts = parts or deal(experiment, data)
    job = _MAKE[experiment.method.family](experiment, data, parts)
    # A trace is read at the first use: better now than in a worker, when there is a record already.
    job.means(0)
    return job


def federated_job(
    experiment: Experiment, data: DataSet | None = None, parts: Parts | None = None
) -> FederatedJob:
    """Return the job of an experiment that must be federated.

    Raises:
        UserError: It is not, or it cannot be run as it is.
    """
    job = make_job(experiment, data, parts)
    if not isinstance(job, FederatedJob):
        raise ExperimentError(
            f"{experiment.method.name} trains a network a client; this works with federated methods only"
        )
    return job


def _federated(experiment: Experiment, data: DataSet, parts: Parts) -> FederatedJob:
    fleet, training = experiment.fleet, experiment.training
    assert isinstance(fleet, FederatedFleet)
    assert isinstance(training, FederatedTraining)
    if fleet.per_round > len(parts):
        raise ExperimentError(
            f"[fleet] per_round: {fleet.per_round} of {len(parts)} devices cannot take part"
        )
    reference, method_class = experiment.network.name, federated.METHODS[experiment.method.name]
    options = experiment.options
    net = network(experiment, reference, data)
    plan = trace(net, data, _keep(experiment, reference))
    macs = plan.macs(plan.uniform(0.0)), plan.macs(plan.uniform(0.5))
    own = method_class.network(reference, options)
    if own != reference:
        net = network(experiment, own, data)
        plan = trace(net, data, NETWORKS[own].keep if own in NETWORKS else getattr(options, "keep", ()))
    members = method_class.members(macs[0], plan.macs(plan.uniform(0.0)), options)
    alone = parts.sizes.eq(1).nonzero()
    if len(alone):
        what = f"[data] partition: device {int(alone[0])} has a single sample"
        check_takes_one(net, data, what, "deal larger shares, or to fewer devices")
    if members > 1:
        net = VotingEnsemble([network(experiment, own, data, member) for member in range(members)])
    take_channels_last(net, images(data.shape))
    optimiser = _optimiser(training, experiment.experiment.rounds)
    setting = federated.Setting(plan, optimiser, fleet.round_seconds, members)
    method = method_class(setting, options)
    means = _availability(fleet, method_class.resources)
    return FederatedJob(experiment, data, parts, net, means, macs, fleet, training, method)


def _split(experiment: Experiment, data: DataSet, parts: Parts) -> SplitJob:
    fleet, training = experiment.fleet, experiment.training
    assert isinstance(fleet, SplitFleet)
    assert isinstance(training, SplitTraining)
    net = network(experiment, experiment.network.name, data)
    options = experiment.options
    assert isinstance(options, split.SplitOptions)
    found = split.cut(net, options.cut, torch.zeros(2, *data.shape))
    macs = float(found.client_macs + found.server_macs)
    clients = len(parts) - fleet.held_out
    if clients < 1:
        raise ExperimentError(f"[fleet] held_out: {fleet.held_out} of {len(parts)} devices; none would train")
    most = max(len(parts[client]) for client in range(clients))
    setting = split.Setting(
        cut=found,
        clients=clients,
        classes=len(data.classes),
        rounds=experiment.experiment.rounds,
        iterations=training.iterations or math.ceil(most / training.batch_size),
        lr=training.lr,
        weight_decay=training.weight_decay,
        batch_size=training.batch_size,
        seed=experiment.experiment.seed,
    )
    method = split.METHODS[experiment.method.name](setting, options)
    # No deadline that the slowest must be able to meet: the ratio alone says how slow they are.
    means, at_least = _availability(fleet, "own"), 0.0
    return SplitJob(experiment, data, parts, net, means, (macs, at_least), fleet, training, method)


def _gossip(experiment: Experiment, data: DataSet, parts: Parts) -> GossipJob:
    fleet, training = experiment.fleet, experiment.training
    assert isinstance(fleet, GossipFleet)
    assert isinstance(training, GossipTraining)
    net = network(experiment, experiment.network.name, data)
    take_channels_last(net, images(data.shape))
    most = max(len(parts[device]) for device in range(len(parts)))
    iterations = training.iterations or math.ceil(most / training.batch_size)
    rounds, seed = experiment.experiment.rounds, experiment.experiment.seed
    t = training
    sgd = gossip.Sgd(
        t.lr,
        t.momentum,
        t.nesterov,
        t.weight_decay,
        tuple(round(share * rounds) * iterations for share in t.milestones),
        t.gamma,
    )
    setting = gossip.Setting(
        net=net,
        graph=build_graph(fleet.graph, len(parts), seed),
        steps=rounds * iterations,
        sgd=sgd,
        seed=seed,
        loss_rate=fleet.loss_rate,
        late_rate=fleet.late_rate,
        lossy=fleet.loses,
        recorded=fleet.graph_file is not None,
        departures=fleet.departures,
        announced=fleet.farewell != "crash",
    )
    for sender, receiver, *_ in fleet.cuts:
        if not any(receiver in phase[sender] for phase in setting.graph.phases if sender < len(phase)):
            raise ExperimentError(
                f"[fleet] cuts: graph '{setting.graph.name}' has no link from node {sender} to node {receiver}"
            )
    method = gossip.METHODS[experiment.method.name](setting, experiment.options)
    example = torch.zeros(2, *data.shape)
    with counted(net, example) as counter:
        check_classifies(net, net(example), data)
    macs = counter.macs / len(example)
    means = _availability(fleet, "own")
    return GossipJob(experiment, data, parts, net, means, (macs, 0.0), fleet, training, method, iterations)


def load_data(experiment: Experiment) -> DataSet:
    """Return the data set that the experiment names, its images in shared memory."""
    at = experiment.data
    seed = experiment.experiment.seed
    data = load(at.source, folder=at.folder, image=at.image, label=at.label, writer=at.writer, seed=seed)
    data.share_memory_()
    return data


def deal(experiment: Experiment, data: DataSet) -> Parts:
    """Return who holds what."""
    devices, seed = experiment.fleet.devices, experiment.experiment.seed
    return Parts.of(partition(experiment.data.partition, data.train, devices, seed))


def _optimiser(training: FederatedTraining, rounds: int) -> federated.Optimiser:
    """Return local training as the experiment has it; milestones become rounds."""
    t = training
    milestones = tuple(round(share * rounds) for share in t.milestones)
    return federated.Optimiser(t.lr, t.momentum, t.weight_decay, t.clip_norm, milestones, t.gamma)


def _keep(experiment: Experiment, name: str) -> Sequence[str]:
    if experiment.network.keep is not None:
        return experiment.network.keep
    return NETWORKS[name].keep if name in NETWORKS else ()


def _availability(fleet: FleetSection, resources: Literal["own", "full"]) -> AvailabilityConfig:
    if resources == "full":
        return AvailabilityConfig("constant", round_seconds=fleet.round_seconds)
    return AvailabilityConfig(
        fleet.availability, fleet.ratio, fleet.changes_per_round, fleet.round_seconds, fleet.trace
    )


_MAKE: Final[dict[Family, Callable[[Experiment, DataSet, Parts], AnyJob]]] = {
    "federated": _federated,
    "split": _split,
    "gossip": _gossip,
}
