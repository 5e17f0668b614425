"""What a device's memory has no room for is not trained: rows of the table, a sub-model, the network."""

from __future__ import annotations

import copy
from dataclasses import replace

from leanfleet.engines.hardware.measuring import Profile, workload
from leanfleet.engines.job import FederatedJob
from leanfleet.federated import Distreal
from leanfleet.federated.submodel import SubModel
from leanfleet.profiling import check_room, peak_bytes
from leanfleet.randomness import torch_generator
from leanfleet.wire import decode


def fit_memory(job: FederatedJob, profile: Profile, down: bytes, room: float) -> tuple[FederatedJob, Profile]:
    """Leave in a method's table only rows that there is room for; where it has none, check what it is to train.

    Args:
        job: What is trained.
        profile: What is known of the device.
        down: What the server assigned, as encoded.
        room: Bytes of memory that a step may take.

    Returns:
        The job, with a shorter table if need be, and the profile, with what had to be counted.

    Raises:
        MemoryError: There is no room for the smallest step.
    """
    if profile.most_bytes <= room:
        return job, profile
    method = job.method
    if not isinstance(method, Distreal):
        kept = method.opened(decode(down))[0] if isinstance(method, SubModel) else method.plan.full
        check_room(peak_bytes(workload(job), kept), room)
        return job, profile
    peaks = profile.row_bytes or _row_bytes(job, method)
    check_room(min(peaks), room)
    smaller = copy.copy(method)
    rows = tuple(row for row, peak in zip(method.lut.rows, peaks, strict=True) if peak <= room)
    smaller.lut = replace(method.lut, rows=rows)
    return replace(job, method=smaller), replace(profile, row_bytes=peaks)


def _row_bytes(job: FederatedJob, method: Distreal) -> list[int]:
    """Return the memory of every row, its counts rounded up."""
    plan, work, found = method.plan, workload(job), list[int]()
    for row in method.lut.rows:
        counts = [group.neighbours(rate)[2] for group, rate in zip(plan.groups, row.rates, strict=True)]
        found.append(peak_bytes(work, plan.draw_counts(counts, torch_generator("memory"))))
    return found
