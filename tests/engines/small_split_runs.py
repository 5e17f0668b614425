"""The small split runs that tests of the engine look at, one for every method and ablation."""

from __future__ import annotations

from torch import Tensor

from leanfleet.engines.job import SplitJob, make_job
from leanfleet.experiment import Experiment, loads
from leanfleet.runs import Run

TOML = """
[experiment]
name = "split"
rounds = 4
eval_every = 4
[data]
partition = "classes(3)"
[network]
name = "digits-cnn-small"
[fleet]
devices = 3
[training]
iterations = 3
batch_size = 8
[method]
name = "adasplit"
cut = 7
kappa = 0.5
"""
LOCAL = 2  # rounds of it in which nothing is sent

VARIANTS = {
    "adasplit": (),
    "listening": ("method.server_grad=true", "method.values=bf16"),
    "masks-only": ("method.kappa=0.0", "method.eta=1.0", "method.local_loss=none"),
    "no-masks": ("method.masks=none", "method.selection=random"),
    "no-head": ("method.head=false", "method.masks=channel", "method.selection=round_robin"),
    "aux-ce": ("method.local_loss=aux_ce", "method.values=int4", "fleet.devices=4", "fleet.held_out=1"),
    "handover": ("method.client_nets=handover", "method.mask_scope=active"),
    "sl-basic": ("method.name=sl-basic",),
    "sl-handover": ("method.name=sl-basic", "method.client_nets=handover"),
    "splitfed-1": ("method.name=splitfed", "method.version=1"),
    "splitfed-2": ("method.name=splitfed", "method.version=2", "method.values=int8"),
}


def experiment(*overrides: str) -> Experiment:
    return loads(TOML, overrides)


def job(*overrides: str) -> SplitJob:
    made = make_job(experiment(*overrides))
    assert isinstance(made, SplitJob)
    return made


def tensors(record: Run) -> dict[str, Tensor]:
    latest = record.latest()
    assert latest is not None
    return latest.tensors
