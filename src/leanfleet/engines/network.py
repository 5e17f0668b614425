"""An experiment's network: made, and checked against the data."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanfleet.data import DataSet
from leanfleet.errors import ExperimentError, NetworkError
from leanfleet.experiment import Experiment
from leanfleet.nets import build
from leanfleet.randomness import key
from leanfleet.subnet import SubnetPlan


def network(experiment: Experiment, name: str, data: DataSet, member: int = 0) -> nn.Module:
    """Return a network for this data, at the experiment's start; each member of an ensemble has its own."""
    seed = experiment.experiment.seed
    seed = key(seed, "member", member) if member else seed
    folder = experiment.network.folder
    net = build(name, classes=len(data.classes), shape=data.shape, seed=seed, folder=folder)
    if experiment.training.batch_size == 1:
        check_takes_one(net, data, "[training] batch_size = 1", "take 2 or more")
    return net


def check_takes_one(net: nn.Module, data: DataSet, what: str, advice: str) -> None:
    """Check that a network trains on a single image.

    Args:
        net: The network.
        data: What images look like.
        what: Why it should; for the error.
        advice: What to do else.

    Raises:
        ExperimentError: It does not.
    """
    try:
        copy.deepcopy(net).train()(torch.zeros(1, *data.shape))
    except ValueError as error:
        # Torch's, of a batch norm over a single value.
        raise ExperimentError(f"{what}: {error}; {advice}") from error


def trace(net: nn.Module, data: DataSet, keep: Sequence[str]) -> SubnetPlan:
    """Return the plan of a network for this data.

    Raises:
        NetworkError: The network cannot be cut, or is no classifier of so many classes.
    """
    # Two images: a batch norm may refuse one.
    example = torch.zeros(2, *data.shape)
    plan = SubnetPlan.trace(net, example, keep)
    with torch.no_grad():
        found = plan.run(dict(net.named_parameters()), plan.full, example, training=False)
    check_classifies(net, found, data)
    return plan


def check_classifies(net: nn.Module, found: Tensor, data: DataSet) -> None:
    """Check what a network says of two images.

    Raises:
        NetworkError: It is no classifier of so many classes.
    """
    shape = tuple(found.shape)
    if len(shape) != 2 or shape[0] != 2 or shape[1] < len(data.classes):
        raise NetworkError(
            f"{type(net).__name__} gives {shape} for 2 images; "
            f"{len(data.classes)} classes need (2, {len(data.classes)})"
        )
