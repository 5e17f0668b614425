from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from leanfleet.errors import ExperimentError
from leanfleet.experiment import DataSection, Experiment, FederatedFleet, FederatedTraining


def test_the_defaults_are_the_specification_s() -> None:
    x = Experiment()
    assert (x.experiment.name, x.experiment.seed, x.experiment.rounds, x.experiment.eval_every) == (
        "experiment",
        0,
        100,
        1,
    )
    assert (x.data.source, x.data.partition, x.data.augment) == ("digits", "iid", "none")
    assert (x.network.name, x.network.keep) == ("digits-cnn", None)
    assert (x.fleet.devices, x.fleet.per_round, x.fleet.availability) == (20, 10, "exponential")
    assert (x.fleet.ratio, x.fleet.changes_per_round, x.fleet.round_seconds) == (4.0, 2.0, 1.0)
    assert (x.fleet.rule, x.fleet.margin, x.fleet.late) == ("pace", 0.05, "partial")
    t = x.training
    assert (t.lr, t.momentum, t.weight_decay, t.batch_size, t.epochs) == (0.1, 0.0, 1e-3, 32, 1)
    assert (t.milestones, t.gamma, t.clip_norm) == ((0.6, 0.8), 0.1, None)
    assert x.method.name == "distreal"
    assert x.options is x.method.options
    assert (x.budget.macs, x.budget.bytes, x.budget.seconds) == (None, None, None)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FederatedTraining().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("source", ["digits", "cifar10", "hf:owner/name"])
def test_a_name_is_no_path(source: str) -> None:
    assert DataSection(source=source).source_path is None


@pytest.mark.parametrize("source", ["train.parquet", "my/data", "/data/train.parquet", "~/x.parquet"])
def test_a_path_is_known_as_one(source: str) -> None:
    assert DataSection(source=source).source_path == Path(source)


def test_one_device_a_writer_needs_writers() -> None:
    with pytest.raises(ExperimentError, match="writer"):
        Experiment(fleet=FederatedFleet(devices=None))
    x = Experiment(data=DataSection(partition="writer"), fleet=FederatedFleet(devices=None))
    assert x.fleet.devices is None
