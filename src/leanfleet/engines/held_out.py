"""What a split run is worth to clients that it has never seen: they have neither a half nor masks of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from leanfleet.engines.client_data import accuracy_and_loss, stream
from leanfleet.engines.job import SplitJob
from leanfleet.engines.personal import NEW, Who, assemble
from leanfleet.split.server import Server

_CPU: Final = torch.device("cpu")


def held_out_accuracies(job: SplitJob, server: Server, clients: Mapping[str, Tensor]) -> dict[str, float]:
    """Return mean accuracies over the clients that were held out; empty where there are none.

    A client that has never been seen is served in two ways (both our decisions): with the mean of all clients'
    halves and masks, which needs nothing of it; or with half and masks of the known client whose network has the
    lowest loss on one mini-batch of its labelled samples.

    Args:
        job: What was run.
        server: Its server, at the end.
        clients: States of the clients that trained, by `CLIENT/NAME`.

    Returns:
        `held_out_accuracy` by the mean, and `held_out_accuracy_nearest`.
    """
    out = range(job.devices, len(job.parts))
    if not out:
        return {}
    chosen: dict[str, dict[int, Who]] = {
        "held_out_accuracy": dict.fromkeys(out, NEW),
        "held_out_accuracy_nearest": dict(_nearest(job, server, clients)),
    }
    found = {}
    for name, whose in chosen.items():
        accuracies = []
        for client in out:
            net = assemble(job, server, clients, whose[client])
            accuracies.append(accuracy_and_loss(job, client, net, _CPU)[0])
        found[name] = sum(accuracies) / len(accuracies)
    return found


def _nearest(job: SplitJob, server: Server, clients: Mapping[str, Tensor]) -> dict[int, int]:
    """Return, for every client that was held out, the known client whose network fits a few of its samples best."""
    samples = {i: stream(job, i, _CPU).batch(0) for i in range(job.devices, len(job.parts))}
    best = dict.fromkeys(samples, (float("inf"), 0))
    for known in range(job.devices):
        net = assemble(job, server, clients, known)
        with torch.no_grad():
            for i, (x, y) in samples.items():
                best[i] = min(best[i], (float(F.cross_entropy(net(x), y)), known))
    return {i: known for i, (_, known) in best.items()}
