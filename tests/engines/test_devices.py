"""A device's round, and what every key of the experiment file does to it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from leanfleet.engines import run
from leanfleet.engines.devices import Devices, Outcome, recalibrated
from leanfleet.engines.job import FederatedJob, make_job
from leanfleet.engines.local import saved_params
from leanfleet.errors import ExperimentError, LeanfleetError
from leanfleet.experiment import loads
from leanfleet.runs import Run
from tiny_experiment import experiment

KEYS = [
    ("distreal", "fleet.margin=0.4"),
    ("distreal", "fleet.rule=slot"),
    ("distreal", "fleet.ratio=1.5"),
    ("distreal", "fleet.changes_per_round=9.0"),
    ("distreal", "data.augment=crop-flip"),
    ("distreal", "data.partition=dirichlet(0.5)"),
    ("distreal", "training.lr=0.02"),
    ("distreal", "training.momentum=0.9"),
    ("distreal", "training.weight_decay=0.1"),
    ("distreal", "training.batch_size=8"),
    ("distreal", "training.epochs=2"),
    ("distreal", "training.milestones=[0.1]"),
    ("distreal", "training.clip_norm=0.01"),
    ("distreal", "method.drop=bernoulli"),
    ("distreal", "method.scale=false"),
    ("distreal", "method.weight=batches"),
    ("federated-dropout", "method.scale=true"),
]


@pytest.mark.parametrize(("method", "key"), KEYS)
def test_every_key_of_the_file_changes_what_is_trained(tmp_path, method, key):
    common = "experiment.rounds=2", "fleet.per_round=3", f"method.name={method}"
    plain, changed = (
        saved_params(run(experiment(*common, *more), root=tmp_path, workers=1)) for more in ((), (key,))
    )
    assert any(not torch.equal(plain[n], changed[n]) for n in plain)


def outcomes_of(*overrides):
    job = make_job(experiment("fleet.changes_per_round=6.0", *overrides))
    params = {n: p.detach() for n, p in job.net.named_parameters()}
    answer = Devices(job).round(params, 0, 0.0, {d: d for d in range(10)}, lambda: None)
    return [Outcome(**o) for o in json.loads(answer.scalars["outcomes"])]


def test_server_assigned_methods_lose_their_stragglers():
    outcomes = outcomes_of("method.name=federated-dropout")
    assert {o.late for o in outcomes} == {True, False}
    assert all((o.bytes_up == 0) == o.late for o in outcomes)
    assert all(o.macs > 0 for o in outcomes), "what a late device spent is in the books all the same"


def test_a_late_device_of_distreal_sends_what_it_has_done_unless_that_is_discarded():
    partial, discard = (
        outcomes_of("fleet.rule=slot", f"fleet.late={late}") for late in ("partial", "discard")
    )
    assert [o.late for o in partial] == [o.late for o in discard]
    assert any(o.late and o.bytes_up > 0 for o in partial)
    assert all((o.bytes_up == 0) == o.late for o in discard)


def test_a_round_without_deadline_lasts_until_its_last_device_is_done(tmp_path):
    trace = tmp_path / "slow.csv"
    trace.write_text("device,seconds,rate\na,0,0.1\n")
    slow = "network.name=digits-cnn", "fleet.availability=trace", f"fleet.trace={trace}", "method.name=small"
    record = run(experiment(*slow, "experiment.rounds=1"), root=tmp_path, workers=1)
    # A quarter of the work at a tenth of the rate.
    assert record.summary()["seconds_virtual"] == pytest.approx(460_416 / 1_821_952 / 0.1, rel=1e-6)


def test_a_device_that_is_never_done_is_named(tmp_path):
    trace = tmp_path / "ends.csv"
    trace.write_text("device,seconds,rate\na,0,0.5\na,0.1,0\n")
    never = "network.name=digits-cnn", "fleet.availability=trace", f"fleet.trace={trace}", "method.name=small"
    with pytest.raises(ExperimentError, match=r"round 1: device \d+ is never done"):
        run(experiment(*never), root=tmp_path, workers=1)
    assert "Infinity" not in "".join(str(event) for event in Run.open(tmp_path / "tiny").events())


def test_divergence_that_only_evaluation_sees_is_said(tmp_path):
    with pytest.raises(LeanfleetError, match="diverged"):
        run(experiment("training.lr=1e30", "training.weight_decay=0.0"), root=tmp_path, workers=1)


def test_evaluation_b_takes_no_statistics_of_the_batch():
    job = make_job(experiment())
    params = {n: p.detach() for n, p in job.net.named_parameters()}
    net = recalibrated(job, params, torch.device("cpu"))
    x = torch.randn(9, *job.data.shape)
    with torch.no_grad():
        assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)


def test_norms_without_running_averages_are_recalibrated_too():
    job = make_job(experiment())
    for module in job.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    net = recalibrated(job, dict(job.net.named_parameters()), torch.device("cpu"))
    x = torch.randn(9, *job.data.shape)
    with torch.no_grad():
        assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)


def instance_normed() -> nn.Module:
    """A network whose instance norms keep running statistics, which training never uses."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 10),
    )  # fmt: skip


def test_instance_norms_do_in_use_what_they_did_in_training() -> None:
    job = make_job(loads('[network]\nname = "test_devices:instance_normed"'))
    assert isinstance(job, FederatedJob)
    params = dict(job.net.named_parameters())
    x = torch.rand(4, 1, 8, 8)
    found = recalibrated(job, params, torch.device("cpu"))(x)
    plan = job.method.plan
    torch.testing.assert_close(found, plan.run(params, plan.full, x, training=False))
