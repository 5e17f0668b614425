"""The local engine end to end: repeatable, resumable, indifferent to workers, honest in its books."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from leanfleet.data import DataSet, load
from leanfleet.engines import resume, run
from leanfleet.engines.center import shards
from leanfleet.engines.devices import Devices
from leanfleet.engines.inference import evaluate, export
from leanfleet.engines.job import make_job
from leanfleet.engines.local import saved_params
from leanfleet.errors import DataError, LeanfleetError, RecordError, StorageError
from leanfleet.federated import METHODS
from leanfleet.ledger import PHI
from leanfleet.runs import Run
from leanfleet.wire import Message, encode
from tiny_experiment import TOML, experiment


def outcome(record):
    """All that must be equal for equal runs: everything but the wall clock."""
    wall = {"seconds_wall", "workers"}
    events = [{k: v for k, v in event.items() if k not in wall} for event in record.events()]
    return saved_params(record), events, {k: v for k, v in record.summary().items() if k not in wall}


def assert_same(one, two):
    (params_one, *rest_one), (params_two, *rest_two) = outcome(one), outcome(two)
    assert all(torch.equal(params_one[n], params_two[n]) for n in params_one)
    assert rest_one == rest_two


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run(experiment(), root=tmp_path_factory.mktemp("reference"), workers=1)


def test_the_same_seed_gives_the_same_run_bit_for_bit(tmp_path, reference):
    assert_same(run(experiment(), root=tmp_path, workers=1), reference)


def test_a_run_goes_on_where_it_was_computed(tmp_path):
    record = run(experiment("experiment.rounds=2"), root=tmp_path, workers=1, device="cpu:0")
    for name in ("checkpoint-2.safetensors", "summary.json"):
        (record.folder / name).unlink()
    assert resume(record.folder).latest().state["device"] == "cpu:0"


def test_another_seed_gives_another(tmp_path, reference):
    other = run(experiment("experiment.seed=1", "experiment.rounds=1"), root=tmp_path, workers=1)
    assert other.events()[0]["accuracy"] != reference.events()[0]["accuracy"]


def test_two_workers_agree_with_one_and_with_themselves(tmp_path, reference):
    two, again = (run(experiment(), root=tmp_path, workers=2) for _ in range(2))
    assert_same(two, again)
    one_params, two_params = saved_params(reference), saved_params(two)
    assert all(torch.allclose(one_params[n], two_params[n], atol=1e-5) for n in one_params)
    for field in ("macs_total", "bytes_up", "bytes_down", "stragglers", "seconds_virtual"):
        assert two.summary()[field] == reference.summary()[field]


class InterruptedByTestError(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_interrupted_run_resumes_to_the_same_result(tmp_path, reference, at):
    def stop(progress):
        if progress.round == at and progress.share > 0.4:
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        run(experiment(), root=tmp_path, workers=1, watch=stop)
    assert_same(resume(tmp_path / "tiny"), reference)


def test_a_record_of_another_version_is_refused_in_one_line(tmp_path):
    record = run(experiment("experiment.rounds=1"), root=tmp_path, workers=1)
    (record.folder / "summary.json").unlink()
    state = record.folder / "state.json"
    state.write_text(state.read_text().replace('"closed"', '"shut"'))
    with pytest.raises(RecordError, match="its checkpoint has no 'closed': another version"):
        resume(record.folder)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    record = run(experiment("experiment.rounds=1"), root=tmp_path, workers=1)
    before = {path.name: path.read_bytes() for path in record.folder.iterdir()}
    assert resume(record.folder).finished
    assert {path.name: path.read_bytes() for path in record.folder.iterdir()} == before


def test_a_record_holds_what_the_design_promises(reference):
    assert {path.name for path in reference.folder.iterdir()} >= {
        "experiment.toml", "events.jsonl", "summary.json", "state.json", "lut.safetensors",
        "checkpoint-3.safetensors", "checkpoint-4.safetensors",
    }  # fmt: skip
    summary = reference.summary()
    assert {
        "method", "family", "seed", "rounds", "accuracy", "accuracy_recalibrated", "best_accuracy", "macs_total",
        "server_macs", "macs_per_device_mean", "bytes_up", "bytes_down", "seconds_virtual", "seconds_wall",
        "stragglers", "energy_joules",
    } <= set(summary)  # fmt: skip
    assert summary["energy_joules"] is None
    assert summary["rounds"] == 4
    assert 'lut = "lut.safetensors"' in (reference.folder / "experiment.toml").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_its_books_add_up(tmp_path, name):
    network = "digits-cnn" if name in ("small", "ensemble") else "digits-cnn-small"
    overrides = f"method.name={name}", "experiment.rounds=2", f"network.name={network}"
    record = run(experiment(*overrides), root=tmp_path, workers=1)
    summary, events = record.summary(), record.events()
    assert [event["round"] for event in events] == [1, 2]
    assert (
        0 < summary["macs_total"] <= sum(e["available_macs"] for e in events) * (1 + 1e-6) or name == "small"
    )
    assert summary["bytes_down"] > 0
    assert 0 <= summary["accuracy"] <= 1
    assert summary["seconds_virtual"] >= 2.0 * (1 - 1e-9)


def test_full_resources_take_exactly_the_round(tmp_path):
    record = run(experiment("method.name=fedavg", "experiment.rounds=2"), root=tmp_path, workers=1)
    event = record.events()[-1]
    assert event["seconds_virtual"] == pytest.approx(2.0)
    assert event["stragglers"] == 0
    job = make_job(experiment("method.name=fedavg"))
    assert event["macs_total"] == pytest.approx(
        PHI * job.macs[0] * len(job.parts.indices) / 10 * 4 * 2, rel=0.05
    ), "a device at r_max trains the whole network on all its samples in T"


def test_federated_dropout_sends_less_down(tmp_path):
    sent = {}
    for name in ("distreal", "federated-dropout"):
        record = run(experiment(f"method.name={name}", "experiment.rounds=1"), root=tmp_path, workers=1)
        sent[name] = record.summary()["bytes_down"]
    assert sent["federated-dropout"] < 0.9 * sent["distreal"]


def test_methods_of_a_seed_see_the_same_devices_and_means():
    names = "distreal", "federated-dropout", "small"
    jobs = [make_job(experiment(f"method.name={name}", "network.name=digits-cnn")) for name in names]
    for device in range(10):
        rates = {job.means(device).rate(1.7) for job in jobs}
        assert len(rates) == 1, "rates are of the reference network, never of a method's own"


@pytest.mark.parametrize(("limit", "value"), [("seconds", 2.0), ("macs", 1.0), ("bytes", 10.0)])
def test_a_budget_ends_the_run(tmp_path, limit, value):
    record = run(experiment(f"budget.{limit}={value}"), root=tmp_path, workers=1)
    summary = record.summary()
    assert summary["ended_by"] == limit
    assert summary["rounds"] == (2 if limit == "seconds" else 1)
    assert summary["accuracy"] is not None


def poison(monkeypatch, devices):
    """Let some devices send NaN."""
    from leanfleet.federated.distreal import Distreal

    train, count = Distreal.train, {"calls": 0}

    def broken(self, message, batches, pacer, rng):
        update = train(self, message, batches, pacer, rng)
        count["calls"] += 1
        if update is not None and count["calls"] in devices:
            update.tensors[next(iter(update.tensors))].view(-1)[0] = float("nan")
        return update

    monkeypatch.setattr(Distreal, "train", broken)


def test_nan_in_an_update_is_left_out_and_said(tmp_path, monkeypatch):
    poison(monkeypatch, {2})
    record = run(experiment("experiment.rounds=1"), root=tmp_path, workers=1)
    (complaint,) = record.events()[0]["rejected"]
    assert complaint.startswith("device ")
    assert "finite" in complaint
    assert all(bool(p.isfinite().all()) for p in saved_params(record).values())


def test_nan_everywhere_ends_the_run_and_damages_nothing(tmp_path, monkeypatch):
    poison(monkeypatch, set(range(5, 100)))
    with pytest.raises(LeanfleetError, match=r"round 2: every update was left out .*lower \[training\] lr"):
        run(experiment(), root=tmp_path, workers=1)
    monkeypatch.undo()
    assert resume(tmp_path / "tiny").finished


def test_a_liar_cannot_buy_weight(tmp_path, monkeypatch):
    from leanfleet.federated.distreal import Distreal

    train = Distreal.train

    def lie(self, *arguments):
        update = train(self, *arguments)
        return update and Message(update.tensors, {"weight": update.scalars["weight"] * 100})

    monkeypatch.setattr(Distreal, "train", lie)
    with pytest.raises(LeanfleetError, match="claims a weight"):
        run(experiment("experiment.rounds=1"), root=tmp_path, workers=1)


def test_evaluations_repeat():
    job = make_job(experiment())
    params = {n: p.detach() for n, p in job.net.named_parameters()}
    devices = Devices(job)
    whole = devices.evaluate(params, (0, 1), recalibrate=True).scalars
    assert whole["count"] == len(job.data.test.labels)
    again = devices.evaluate(params, (0, 1), recalibrate=True).scalars
    assert whole == again


def test_shards_are_balanced_and_lose_nobody():
    work = {device: float(1 + device % 7) for device in range(35)}
    found = shards(work, 3)
    assert sorted(d for shard in found for d in shard) == list(range(35))
    loads_ = [sum(work[d] for d in shard) for shard in found]
    assert max(loads_) - min(loads_) <= 7
    assert shards(work, 3) == found


def test_traffic_between_processes_does_not_grow_with_the_number_of_devices():
    job = make_job(experiment())
    params = {n: p.detach() for n, p in job.net.named_parameters()}
    sizes = [
        len(encode(Devices(job).round(params, 0, 0.0, {d: d for d in range(n)}, lambda: None)))
        for n in (1, 8)
    ]
    assert sizes[1] - sizes[0] < 3_000, "only a line of outcome a device"


def test_images_live_once_however_many_devices():
    few, many = make_job(experiment()), make_job(experiment("fleet.devices=1000", "data.partition=iid"))
    assert many.data.train.images.data_ptr() == few.data.train.images.data_ptr()
    assert many.parts.indices.nbytes == few.parts.indices.nbytes
    assert many.data.train.images.is_shared()


# -- real processes ------------------------------------------------------------------------------------------


def launch(folder, *overrides, rounds=4):
    (folder / "x.toml").write_text(TOML)
    sets = [part for o in (*overrides, f"experiment.rounds={rounds}") for part in ("--set", o)]
    command = [sys.executable, "-m", "leanfleet", "run", "x.toml", "--workers", "2", *sets]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_events(folder, count):
    path, end = folder / "runs" / "tiny" / "events.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_kill_9_at_random_moments_and_resume_to_the_same_numbers(tmp_path):
    uninterrupted = run(experiment("experiment.rounds=40"), root=tmp_path / "whole", workers=2)
    process = launch(tmp_path, rounds=40)
    wait_for_events(tmp_path, 1)
    chance = random.Random(0)
    for _ in range(2):
        time.sleep(chance.random())
        assert process.poll() is None, "there was nothing left to kill"
        process.kill()
        process.communicate()
        process = subprocess.Popen(
            [sys.executable, "-m", "leanfleet", "resume", "runs/tiny"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(3)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert_same(Run.open(tmp_path / "runs" / "tiny"), uninterrupted)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_that_dies_ends_the_run_with_a_resumable_record(tmp_path):
    process = launch(tmp_path, rounds=200)
    wait_for_events(tmp_path, 1)
    spawned = [c for c in children(process.pid) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(spawned[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by SIGKILL" in err
    assert "resume" in err
    assert "Traceback" not in err
    record = Run.open(tmp_path / "runs" / "tiny")
    assert record.latest() is not None
    with Run.open(record.folder) as again:
        assert again.restore() is not None


def test_ctrl_c_leaves_a_resumable_record_and_no_workers(tmp_path):
    process = launch(tmp_path, rounds=200)
    wait_for_events(tmp_path, 1)
    spawned = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "leanfleet resume runs/tiny" in err
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in spawned):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_checkpoint_cut_in_half_is_said_and_not_made_worse(tmp_path, reference):
    import shutil

    folder = tmp_path / "cut"
    shutil.copytree(reference.folder, folder)
    (folder / "summary.json").unlink()
    checkpoint = folder / "checkpoint-4.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RecordError, match=r"checkpoint-4\.safetensors: damaged"):
        resume(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_ends_the_run_and_spares_the_record(tmp_path, monkeypatch):
    import leanfleet.storage as storage

    fsync, calls = os.fsync, {"left": 12}

    def full(descriptor):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run(experiment(), root=tmp_path, workers=1)
    monkeypatch.undo()
    assert resume(tmp_path / "tiny").finished


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_books(tmp_path, reference):
    record = run(experiment(), root=tmp_path, workers=1, device="cuda")
    assert record.summary()["macs_total"] == reference.summary()["macs_total"]
    assert record.summary()["accuracy"] == pytest.approx(reference.summary()["accuracy"], abs=0.1)


def test_a_record_of_data_given_in_python_does_not_claim_others(tmp_path):
    digits = load("digits")
    data = DataSet.of("mine", digits.train, digits.test, digits.classes)

    def stop(progress):
        if progress.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment(), root=tmp_path, data=data, workers=1, watch=stop)
    folder = tmp_path / "tiny"
    assert 'source = "python:mine"' in (folder / "experiment.toml").read_text()
    for again in (resume, evaluate):
        with pytest.raises(DataError, match="python:mine: these data were given in Python"):
            again(folder, workers=1)
    done = resume(folder, data=data, workers=1)
    assert evaluate(folder, data=data, workers=1).accuracy == done.summary()["accuracy"]
    export(folder, tmp_path / "net.safetensors", data=data)
