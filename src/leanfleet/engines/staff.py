"""The local engine's worker processes: given a job, they simulate its devices."""

from __future__ import annotations

from typing import Self

import torch

from leanfleet.data import DataSet
from leanfleet.engines.clients import Clients
from leanfleet.engines.devices import Devices
from leanfleet.engines.job import AnyJob, FederatedJob, GossipJob, Job, Parts, SplitJob, make_job
from leanfleet.engines.nodes import Nodes
from leanfleet.errors import UserError
from leanfleet.experiment import dumps, loads
from leanfleet.wire import Message, decode, encode
from leanfleet.workers import Handler, Tick, Workers


def check_device(name: str) -> None:
    """Check that torch can compute on a device such as "cpu", "cuda" or "cuda:1".

    Raises:
        UserError: It cannot.
    """
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        line = str(error).partition("\n")[0]
        raise UserError(f"--device {name}: torch cannot compute there: {line}") from error


def start(data: DataSet, device: str) -> Handler:
    """Build a worker for runs on this data: it is given a job, then answers what the job's family asks."""
    at_work: list[Devices | Clients | Nodes] = []

    def handle(request: bytes, tick: Tick) -> bytes:
        asked = decode(request)
        if asked.scalars["task"] != "job":
            return encode(at_work[0].handle(asked, tick))
        parts = Parts(asked.tensors["indices"], asked.tensors["ends"])
        job = make_job(loads(str(asked.scalars["experiment"])), data, parts)
        at_work[:] = [_at_work(job, device)]
        return encode(Message())

    return handle


def _at_work(job: AnyJob, device: str) -> Devices | Clients | Nodes:
    match job:
        case FederatedJob():
            return Devices(job, device)
        case SplitJob():
            return Clients(job, device)
        case GossipJob():
            return Nodes(job, device)


class Staff:
    """Workers that stay from one run to the next, as long as data and number are the same.

    Starting a process costs seconds, most of them for importing torch: more than a small run takes.

    Args:
        device: Where torch computes, "cpu" or "cuda".

    Raises:
        UserError: It cannot compute there.
    """

    def __init__(self, device: str = "cpu") -> None:
        check_device(device)
        self.device = device
        self._pool: Workers | None = None
        self._data: DataSet | None = None

    def for_job(self, job: Job, count: int) -> Workers:
        """Return `count` workers that have been given this job."""
        if self._pool is None or self._pool.count != count or self._data is not job.data:
            self.close()
            self._pool, self._data = Workers(count, start, (job.data, self.device)), job.data
        tensors = {"indices": job.parts.indices, "ends": job.parts.ends}
        told = encode(Message(tensors, {"task": "job", "experiment": dumps(job.experiment)}))
        self._pool.ask([told] * count)
        return self._pool

    def close(self) -> None:
        """Send the workers home."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
