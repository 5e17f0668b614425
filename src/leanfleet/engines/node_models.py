"""The networks of a trained gossip run: one a node, and their mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from leanfleet.engines.center import named
from leanfleet.engines.gossip import mean
from leanfleet.engines.job import GossipJob
from leanfleet.engines.nodes import by_node
from leanfleet.errors import UserError
from leanfleet.runs import Checkpoint

Model = Mapping[str, Tensor]

_MEAN = "mean"


def models(job: GossipJob, checkpoint: Checkpoint) -> dict[int, dict[str, Tensor]]:
    """Return the model of every node that is left, by its number, ascending: parameters and statistics by name."""
    found = {}
    for i, state in sorted(by_node(named(checkpoint.tensors, "nodes/")).items()):
        node = job.method.node(i)
        node.restore(state)
        found[i] = {name: tensor.clone() for name, tensor in node.model().items()}
    return found


def model_of(found: Mapping[int, Model], who: str | None) -> dict[str, Tensor]:
    """Return a node's model, or the mean of all of them.

    Args:
        found: As `models` returns them.
        who: A number, or "mean", which None is, too.

    Raises:
        UserError: There is none such.
    """
    if who in (None, _MEAN):
        return {name: mean(model[name] for model in found.values()) for name in next(iter(found.values()))}
    if not str(who).isdecimal() or int(str(who)) not in found:
        raise UserError(
            f"--client {who}: there are nodes {', '.join(map(str, sorted(found)))}, and '{_MEAN}'"
        )
    return {name: torch.as_tensor(tensor) for name, tensor in found[int(str(who))].items()}
