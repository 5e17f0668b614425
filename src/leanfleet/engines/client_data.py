"""What a client of the split family trains on, and what it is tested on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from leanfleet.data import Stream, eval_batches, parse_partition
from leanfleet.engines.job import SplitJob
from leanfleet.errors import DataError

_EVALUATION_BATCH = 256


def stream(job: SplitJob, client: int, device: torch.device) -> Stream:
    """Return a client's mini-batches."""
    mean, std = stats(job, client)
    return Stream(
        job.data.train,
        job.parts[client],
        batch_size=job.training.batch_size,
        mean=mean,
        std=std,
        stream=(job.experiment.experiment.seed, client, "batches"),
        augment=job.experiment.data.augment,
        device=device,
    )


def accuracy_and_loss(
    job: SplitJob, client: int, logits: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[float, float]:
    """Return accuracy and mean cross entropy of a network on test data like a client's own.

    Args:
        job: The run.
        client: Whose data.
        logits: Maps images [N, channels, H, W] on `device`, normalised as the client's, to logits.
        device: Where to compute.
    """
    rows, weights = test_samples(job, client)
    weights = weights.to(device)
    mean, std = stats(job, client)
    batches = eval_batches(
        job.data.test, mean=mean, std=std, seed=0, device=device, indices=rows, batch_size=_EVALUATION_BATCH
    )
    hits = loss = 0.0
    with torch.no_grad():
        for (x, y), part in zip(batches, batches.rows, strict=True):
            found, weight = logits(x), weights[part]
            hits += float((weight * (found.argmax(1) == y)).sum())
            loss += float((weight * F.cross_entropy(found, y, reduction="none")).sum())
    # Weights that sum up to 1 may come to a little more.
    return min(hits, 1.0), loss


def test_samples(job: SplitJob, client: int) -> tuple[Tensor, Tensor]:
    """Return the test samples that are like a client's own, and how much each of them weighs.

    Where data are dealt by writer these are its writer's, if there are any; clients that share a writer share them.
    Else test samples weigh so that the classes' shares are those of the client's training samples (our decision).

    Returns:
        int64 [rows], and float64 [test samples] that sum up to 1 over the rows.

    Raises:
        DataError: There are none.
    """
    train, test, writer = job.data.train, job.data.test, _writer(job, client)
    if train.writers is not None and test.writers is not None and writer is not None:
        rows = (test.writers == writer).nonzero().flatten()
        each = parse_partition(job.experiment.data.partition)[1] or 1
        rows = rows[client // len(torch.unique(train.writers)) :: int(each)] if each > 1 else rows
        if len(rows):
            return rows, torch.full((len(test),), 1 / len(rows), dtype=torch.float64)
    classes = len(job.data.classes)
    shares = torch.bincount(train.labels[job.parts[client]], minlength=classes).double()
    there = torch.bincount(test.labels, minlength=classes).double()
    weights = (shares / there.clamp(min=1))[test.labels]
    if not weights.any():
        raise DataError(f"{job.data.name}: no test sample is of a class that client {client} has")
    return weights.nonzero().flatten(), weights / weights.sum()


def stats(job: SplitJob, client: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation by which a client's images are normalised."""
    return job.data.stats(_writer(job, client))


def _writer(job: SplitJob, client: int) -> int | None:
    """Return the writer whose samples a client has, where they are dealt by writer."""
    writers = job.data.train.writers
    if writers is None or parse_partition(job.experiment.data.partition)[0] != "writer":
        return None
    return int(writers[job.parts[client][0]])
