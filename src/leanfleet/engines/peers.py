"""A gossip fleet of real processes on torch.distributed (gloo): one process a node, no centre.

    torchrun --nproc-per-node 4 -m leanfleet run X.toml --engine peers

Nodes are the simulation's own objects, and so is the loop over rounds: every rank plays it, and all ranks keep the
same books. A message goes as its length, then its bytes; one that is to be lost goes as length 0. Time is measured.
Every rank keeps a record: that of rank 0 is the run's, the others' lie inside it. A run is resumed with as many ranks.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from leanfleet.engines.center import as_bytes, as_tensor, named
from leanfleet.engines.job import GossipJob, make_job
from leanfleet.engines.loop import Loop, Watch, say_notes
from leanfleet.engines.nodes import Nodes
from leanfleet.engines.rounds import Found, Gossip, dense_bytes
from leanfleet.errors import ExperimentError, RecordError, WorkerError
from leanfleet.experiment import Experiment, dumps, load
from leanfleet.gossip import memory_ratio
from leanfleet.ledger import PHI, Ledger
from leanfleet.runs import Checkpoint, Run, clear_unborn
from leanfleet.wire import Message

_PATIENCE: Final = timedelta(minutes=30)
_SLACK: Final = 4
_SHORTEST: Final = 1024
_BOOKS: Final = ("macs", "bytes_up", "bytes_down", "sent", "lost", "weight", "memory", "loss", "steps")


def run(experiment: Experiment, *, root: Path = Path("runs"), watch: Watch = lambda progress: None) -> Run:
    """Run an experiment as this process's node, together with the other ranks; return the record of rank 0's run.

    Args:
        experiment: What to run; of the gossip family, with as many devices as there are ranks.
        root: Folder of all records; one that all ranks share.
        watch: Is told about progress.

    Raises:
        UserError: The experiment cannot be run as it is, or this process was not started by torchrun.
        WorkerError: Another rank is gone; the record can be resumed.
    """
    with _fleet():
        job = _job(experiment)
        with _begun(experiment, root) as record:
            _play(record, job, watch, None)
            return record


def resume(folder: Path, *, watch: Watch = lambda progress: None) -> Run:
    """Go on with a run from the last round that all ranks have finished; a finished one is returned as it is.

    Raises:
        RecordError: The record is missing, damaged, in use, or was made by another number of ranks.
        WorkerError: Another rank is gone; the record can be resumed.
    """
    with _fleet():
        with Run.open(folder) as main:
            if main.finished:
                return main
            job = _job(load(main.experiment_file))
        with _opened(folder) as record:
            latest = record.latest()
            if latest is not None and "ranks" not in latest.state["center"]:
                raise RecordError(f"{folder}: was made by one process; leave out --engine peers")
            # Who was killed may be one round behind the others.
            rounds = _gather([0.0 if latest is None else float(latest.round)])
            _play(record, job, watch, record.restore(at=int(rounds.min())))
            return record


def _play(record: Run, job: GossipJob, watch: Watch, restored: Checkpoint | None) -> None:
    if dist.get_rank() == 0:
        say_notes(job)
    Loop(record, job, Peer(job, dist.get_rank()), dist.get_world_size(), watch).go(None, restored)


@contextmanager
def _opened(folder: Path) -> Iterator[Run]:
    """Open this rank's own record; one that did not come as far as that begins it now."""
    own = _own(folder)
    if not (own / "experiment.toml").exists():
        clear_unborn(own)
    text = Run.open(folder).experiment_file.read_text(encoding="utf-8")
    with Run.open(own) if own.exists() else Run.create(own.name, text, folder) as record:
        yield record


class Peer(Gossip):
    """One node of a fleet of real processes.

    Args:
        job: What is run.
        rank: Which node this is.
    """

    def __init__(self, job: GossipJob, rank: int) -> None:
        super().__init__(job)
        self.rank = rank
        self._nodes = Nodes(job)
        self._books = dict.fromkeys(_BOOKS, 0.0)
        self._clock = time.monotonic()
        # Whatever compressor, sums, or positions: none is longer.
        self._most_bytes = _SLACK * (dense_bytes(job) + _SHORTEST)

    def iterate(self, pool: Any, iteration: int, ledger: Ledger, found: Found) -> None:
        """See `Gossip.iterate`."""
        trains = iteration < self.method.setting.steps
        stepped = self._nodes.step([self.rank], iteration, trains)
        if trains:
            self._books["macs"] += PHI * self.job.macs[0] * self.job.training.batch_size
            self._books["loss"] += json.loads(str(stepped.scalars["losses"]))[str(self.rank)]
            self._books["steps"] += 1
        if not self.method.exchanges(iteration):
            return
        receivers: dict[str, list[int]] = json.loads(str(stepped.scalars["receivers"]))
        outgoing = {j: stepped.tensors[name] for name, to in receivers.items() for j in to}
        self._charge(stepped, receivers, not trains)
        arrived = self._exchange(iteration, outgoing)
        names = {f"{sender}/0": data for sender, data in arrived.items()}
        absorbed = self._nodes.absorb([self.rank], {str(self.rank): list(names)}, names)
        found.rejected += json.loads(str(absorbed.scalars["rejected"]))

    def judged(self, pool: Any) -> list[tuple[float, float]]:
        """See `Gossip.judged`."""
        own = json.loads(str(self._nodes.evaluate([self.rank]).scalars["found"]))[str(self.rank)]
        return [(hits, loss) for hits, loss in _gather(own).tolist()]

    def end_training(self, pool: Any) -> None:
        """See `Gossip.end_training`."""
        self.method.begin_final(self._nodes.node(self.rank))

    def refresh(self, pool: Any) -> None:
        """See `Gossip.refresh`."""
        self._nodes.refresh(self.rank)

    def told(self, pool: Any, ledger: Ledger, found: Found) -> dict[str, Any]:
        """See `Gossip.told`; every rank books what all have spent, so that all end a run at the same budget."""
        node = self._nodes.node(self.rank)
        self._books["weight"], self._books["memory"] = node.weight, memory_ratio(node.tensors())
        now = time.monotonic()
        ledger.seconds_virtual += float(_gather([now - self._clock]).max())
        self._clock = now
        books = dict(zip(_BOOKS, _gather(self._books.values()).T, strict=True))
        for i, macs in enumerate(books["macs"].tolist()):
            ledger.record(i, macs=macs, times=int(books["steps"][i]))
        ledger.bytes_up += int(books["bytes_up"].sum())
        ledger.bytes_down += int(books["bytes_down"].sum())
        self._books = dict.fromkeys(_BOOKS, 0.0)
        steps, sent = float(books["steps"].sum()), float(books["sent"].sum())
        return {
            "local_loss": float(books["loss"].sum()) / steps if steps else None,
            "bytes_authors": self.overall()["bytes_authors"],
            "nodes": dist.get_world_size(),
            "weights": [float(books["weight"].min()), float(books["weight"].max())],
            "mass": float(dist.get_world_size()),
            "disagreement": self._disagreement(),
            "memory_ratio": float(books["memory"].max()),
            "lost_share": float(books["lost"].sum()) / sent if sent else 0.0,
            "rejected": found.rejected,
        }

    def mean_model(self) -> dict[str, Tensor]:
        """See `Gossip.mean_model`."""
        return {name: _mean(t) for name, t in self._nodes.node(self.rank).model().items()}

    def overall(self) -> dict[str, int]:
        """See `Gossip.overall`."""
        sums = _gather(self.totals.values()).sum(0)
        return dict(zip(self.totals, map(int, sums), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Return this rank's node."""
        return {f"node/{name}": t for name, t in self._nodes.node(self.rank).tensors().items()}

    def state(self) -> dict[str, Any]:
        """Return this rank's totals, and how many ranks there are."""
        return {"ranks": dist.get_world_size(), "totals": dict(self.totals), "final": self._final}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], pool: Any) -> None:
        """Go back to a checkpoint."""
        self.totals, self._final = dict(state["totals"]), state["final"]
        self._nodes.node(self.rank).restore(named(tensors, "node/"))
        self._clock = time.monotonic()

    def _charge(self, stepped: Message, receivers: Mapping[str, Sequence[int]], final: bool) -> None:
        signs = json.loads(str(stepped.scalars["signs"]))
        for name, message in stepped.tensors.items():
            times = 1 if self.fleet.broadcast else len(receivers[name])
            self._books["bytes_up"] += times * len(message)
            self._books["sent"] += len(receivers[name])
            # As in the simulation.
            if name not in signs:
                self.totals["transmissions"] += times
                self.totals["bytes_authors"] += len(receivers[name]) * self.method.authors_bytes(final)

    def _exchange(self, iteration: int, outgoing: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Send to all out-neighbours and receive from all in-neighbours of an iteration."""
        empty, exchange = torch.empty(0, dtype=torch.uint8), self.method.exchange(iteration)
        frames: dict[int, Tensor] = {}
        for receiver in self.method.column(iteration, self.rank):
            if receiver != self.rank:
                lost = not self.links.arrivals(exchange, [(self.rank, receiver)])
                self._books["lost"] += lost and receiver in outgoing
                # An empty frame, too, where there is nothing to send: the receiver waits for one.
                frames[receiver] = empty if lost else outgoing.get(receiver, empty)
        senders = self.method.in_neighbours(iteration, self.rank)
        lengths = {j: torch.tensor([len(frame)]) for j, frame in frames.items()}
        coming = {j: torch.zeros(1, dtype=torch.int64) for j in senders}
        self._pass(lengths, coming)
        for j, length in coming.items():
            if not 0 <= int(length) <= self._most_bytes:
                raise WorkerError(f"node {self.rank}: node {j} announces a message of {int(length)} bytes")
        arrived = {j: torch.empty(int(n), dtype=torch.uint8) for j, n in coming.items() if int(n)}
        self._pass({j: frame for j, frame in frames.items() if len(frame)}, arrived)
        self._books["bytes_down"] += sum(map(len, arrived.values()))
        return arrived

    def _pass(self, out: Mapping[int, Tensor], into: Mapping[int, Tensor]) -> None:
        waiting = [(j, dist.irecv(t, j)) for j, t in into.items()] + [
            (j, dist.isend(t, j)) for j, t in out.items()
        ]
        for other, work in waiting:
            assert work is not None
            with _in_touch(f"node {other}"):
                work.wait()

    def _disagreement(self) -> float:
        z = self._nodes.node(self.rank).z()
        mean = _mean(z)
        distance = _gather([float((z - mean).square().sum())]).mean()
        return float(distance.sqrt() / mean.norm())


@contextmanager
def _fleet() -> Iterator[None]:
    """Meet the other ranks, and part from them."""
    if "RANK" not in os.environ:
        raise ExperimentError(
            "--engine peers: start it with torchrun, for example: torchrun --nproc-per-node 4 -m leanfleet run X.toml "
            "--engine peers"
        )
    torch.set_num_threads(1)
    # torchrun sends it to all ranks when one has died.
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with _in_touch("another node"):
            dist.init_process_group("gloo", timeout=_PATIENCE)
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if dist.is_initialized():
            dist.destroy_process_group()


def _end(number: int, frame: object) -> None:
    # Once: what follows may take a moment, and has nothing more to say.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise WorkerError(f"node {os.environ['RANK']}: told to end, as when another node is gone")


def _job(experiment: Experiment) -> GossipJob:
    job = make_job(experiment)
    if not isinstance(job, GossipJob):
        raise ExperimentError(f"--engine peers: {experiment.method.name} is no gossip method")
    if job.fleet.absences or job.fleet.late_rate or job.fleet.double_rate:
        raise ExperimentError(
            "--engine peers: absences, late_rate and double_rate exist in the simulation only; leave them out"
        )
    ranks, nodes = dist.get_world_size(), len(job.parts)
    if ranks != nodes:
        raise ExperimentError(
            f"--engine peers: {ranks} processes for [fleet] devices = {nodes}; make them equal"
        )
    return job


@contextmanager
def _begun(experiment: Experiment, root: Path) -> Iterator[Run]:
    """Begin the run's record as rank 0, and those of the other ranks inside it."""
    text, name = dumps(experiment), experiment.experiment.name
    if dist.get_rank() == 0:
        with Run.create(name, text, root) as record:
            _tell(str(record.folder))
            yield record
        return
    folder = Path(_tell(None))
    with Run.create(_own(folder).name, text, folder) as record:
        yield record


def _own(folder: Path) -> Path:
    rank = dist.get_rank()
    return folder / f"rank-{rank}" if rank else folder


def _tell(text: str | None) -> str:
    """Return rank 0's text on every rank."""
    data = as_tensor(text.encode()) if text is not None else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor([len(data)])
    with _in_touch("another node"):
        dist.broadcast(length, 0)
        data = data if text is not None else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0)
    return as_bytes(data).decode()


def _gather(numbers: Any) -> Tensor:
    """Return the numbers of every rank, float64 [ranks, numbers]."""
    own = torch.tensor(list(numbers), dtype=torch.float64)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    with _in_touch("another node"):
        dist.all_gather(found, own)
    return torch.stack(found)


def _mean(own: Tensor) -> Tensor:
    """Return the mean over ranks of a tensor, summed up in float64; of whole numbers it is rounded down."""
    total = own.to(torch.float64, copy=True)
    with _in_touch("another node"):
        dist.all_reduce(total)
    return (total / dist.get_world_size()).to(own.dtype)


@contextmanager
def _in_touch(who: str) -> Iterator[None]:
    """Say in one line that somebody is gone; torch says it in many ways, and at length."""
    try:
        yield
    except RuntimeError as error:
        # Its first sentence, without the line of torch's source.
        why = re.sub(r"^\[[^]]*\]\s*", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
        raise WorkerError(f"node {os.environ['RANK']}: {who} is gone or cannot be reached ({why})") from error
