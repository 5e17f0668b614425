"""What a device's memory has no room for is not trained."""

from __future__ import annotations

import logging

import pytest
import torch

from fake_grid import FakeGrid
from leanfleet.engines.flower import client
from leanfleet.engines.flower.server import serve
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.hardware.measuring import Profile, workload
from leanfleet.engines.hardware.memory import fit_memory
from leanfleet.engines.job import federated_job
from leanfleet.federated import Report
from leanfleet.profiling import most_bytes, peak_bytes
from leanfleet.subnet.lut import Lut
from leanfleet.wire import encode
from tiny_experiment import experiment


def prepared(method, rate=1e12):
    job = federated_job(experiment(f'method.name="{method}"', "training.batch_size=4"))
    plan = job.method.plan
    if method == "distreal":
        job.method.lut = Lut.uniform(plan, levels=6)
    params = {name: p.detach() for name, p in job.net.named_parameters()}
    report = Report(job.samples(0), rate)
    down = encode(job.method.assign(job.method.begin(params), report, 0, torch.Generator()))
    return job, Profile([0.0, 1.0], [0.0, 1.0], most_bytes(workload(job))), down


def test_where_everything_has_room_nothing_is_counted():
    job, profile, down = prepared("distreal")
    found = fit_memory(job, profile, down, profile.most_bytes)
    assert found[0] is job
    assert found[1] is profile


def test_rows_without_room_are_not_in_the_table():
    job, profile, down = prepared("distreal")
    rows = job.method.lut.rows
    _, counted = fit_memory(job, profile, down, profile.most_bytes - 1)
    peaks = counted.row_bytes
    assert len(peaks) == len(rows) == 6
    assert min(peaks) == peaks[0] < max(peaks) <= profile.most_bytes
    for room in peaks:
        smaller, _ = fit_memory(job, counted, down, room)
        assert smaller.method.lut.rows == tuple(r for r, p in zip(rows, peaks, strict=True) if p <= room)
    assert job.method.lut.rows == rows, "there may be room for them in the next round"
    with pytest.raises(MemoryError, match="a training step takes"):
        fit_memory(job, counted, down, peaks[0] - 1)


@pytest.mark.parametrize("method", ["federated-dropout", "heterofl", "fedavg"])
def test_other_methods_train_what_they_are_sent_or_nothing(method):
    job, profile, down = prepared(method)
    whole = peak_bytes(workload(job), job.method.plan.full)
    assert fit_memory(job, profile, down, whole)[0] is job
    with pytest.raises(MemoryError):
        fit_memory(job, profile, down, whole - 1)


def test_a_sub_model_counts_as_it_was_assigned():
    job, profile, down = prepared("federated-dropout", rate=1.0)
    whole = peak_bytes(workload(job), job.method.plan.full)
    assert fit_memory(job, profile, down, whole - 1)[0] is job


def test_a_device_without_room_says_so_and_sits_out(tmp_path, monkeypatch, caplog):
    what = experiment(
        "fleet.devices=2", "fleet.per_round=2", "fleet.round_seconds=60.0", "experiment.rounds=1"
    )
    job = federated_job(what)
    monkeypatch.setattr(client, "federated_job", lambda *given: job)
    # The first device has none, the other all.
    monkeypatch.setattr(Caps, "room", lambda self: 1e3 if self.memory_bytes == 1 else 1e12)
    monkeypatch.setattr(Caps, "apply", lambda self: None)
    grid = FakeGrid(client.app(what), 2, {"clock": "real"})
    grid.contexts[100].node_config["memory-mb"] = 1 / 2**20
    with caplog.at_level(logging.WARNING, "leanfleet.device"):
        record = serve(grid, what, Terms(runs=str(tmp_path), poll_seconds=0.01, wait_seconds=5.0))
    (line,) = [r.message for r in caplog.records if "sits the round out" in r.message]
    assert line.startswith("device 0 sits the round out: a training step takes ")
    (event,) = [e for e in record.events() if e.get("round") == 1]
    assert event["rejected"] == []
    assert record.summary()["stragglers"] == 1
    assert record.summary()["macs_per_device_mean"] > 0
