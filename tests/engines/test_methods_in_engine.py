"""Every federated method through the engine: workers, resume, evaluation, export."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from leanfleet.engines.inference import evaluate, export, trained
from leanfleet.engines.job import make_job
from leanfleet.engines.local import Progress, resume, run, saved_params
from leanfleet.errors import ExperimentError
from leanfleet.experiment import Experiment
from leanfleet.federated import METHODS
from leanfleet.nets import VotingEnsemble
from tiny_experiment import experiment

STATEFUL = ("ensemble", "heterofl")


def one(name: str, *more: str) -> Experiment:
    return experiment(f"method.name={name}", "network.name=digits-cnn", "experiment.rounds=2", *more)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("distreal", "fedavg")])
def test_workers_share_the_devices_of_any_method(name: str, tmp_path: Path) -> None:
    alone, shared = (run(one(name), root=tmp_path, workers=workers) for workers in (1, 2))
    params = [saved_params(record) for record in (alone, shared)]
    assert params[0].keys() == params[1].keys()
    assert all(torch.allclose(params[0][n], params[1][n], atol=1e-5) for n in params[0])
    totals = [record.summary() for record in (alone, shared)]
    for key in ("macs_total", "bytes_up", "bytes_down", "stragglers", "seconds_virtual"):
        assert totals[0][key] == totals[1][key]


@pytest.mark.parametrize("name", STATEFUL)
def test_what_a_method_keeps_survives_an_interruption(name: str, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.round == 1:
            raise KeyboardInterrupt

    whole = run(one(name), root=tmp_path, workers=1)
    with pytest.raises(KeyboardInterrupt):
        run(one(name, "experiment.name=cut"), root=tmp_path, workers=1, watch=stop)
    again = resume(tmp_path / "cut", workers=1)
    expected, found = saved_params(whole), saved_params(again)
    assert all(torch.equal(expected[n], found[n]) for n in expected)


@pytest.mark.parametrize("name", STATEFUL)
def test_what_is_deployed_is_evaluated_and_exported(name: str, tmp_path: Path) -> None:
    record = run(one(name), root=tmp_path, workers=1)
    summary = record.summary()
    found = evaluate(record.folder, workers=1)
    assert found.accuracy == summary["accuracy"]
    assert found.accuracy_recalibrated == summary["accuracy_recalibrated"]
    net, data = trained(record.folder)
    images = (data.test.images.float() / 255 - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(
        data.std
    ).view(-1, 1, 1)
    with torch.no_grad():
        hits = (net(images).argmax(1) == data.test.labels).float().mean()
    assert float(hits) == pytest.approx(found.accuracy_recalibrated, abs=1e-6)
    export(record.folder, tmp_path / "net.ts")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded = torch.jit.load(str(tmp_path / "net.ts"))
        assert torch.allclose(loaded(images[:5]), net(images[:5]), atol=1e-5)


def test_members_are_networks_of_their_own() -> None:
    job = make_job(one("ensemble"))
    assert isinstance(job.net, VotingEnsemble)
    assert len(job.net.members) == job.method.setting.members == 3
    weights = [member.conv1.weight for member in job.net.members]
    assert not torch.equal(weights[0], weights[1])
    small = make_job(one("small"))
    assert torch.equal(weights[0], small.net.conv1.weight)


def test_an_ensemble_needs_a_small_network(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="small network"):
        make_job(experiment("method.name=ensemble", "network.name=digits-cnn-small"))
