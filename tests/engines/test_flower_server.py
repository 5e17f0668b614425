"""A Flower app without Flower's processes: the simulation's model, restarts, and who may take part."""

from __future__ import annotations

import json
import threading
import time

import datasets
import pytest
import torch
from small_flower import (
    QUICK,
    REAL,
    fake,
    is_train,
    jobs_are_made_once,  # noqa: F401
    play,
)

from fake_grid import FakeGrid
from leanfleet.data import load
from leanfleet.engines import run
from leanfleet.engines.flower import server
from leanfleet.engines.flower.fleet import STATUS, Node
from leanfleet.engines.flower.messages import Task
from leanfleet.engines.flower.server import serve
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.hardware.measuring import MeasuredClock
from leanfleet.engines.job import federated_job
from leanfleet.engines.local import begin, saved_params
from leanfleet.errors import ExperimentError, LeanfleetError, RecordInUseError
from leanfleet.report import group, read, summarise
from tiny_experiment import experiment

pytestmark = pytest.mark.usefixtures("jobs_are_made_once")


@pytest.mark.parametrize(
    "method",
    ["distreal", "fedavg", "federated-dropout", "heterofl", "fedprox", "fedrolex", "fjord", "ensemble"],
)
def test_with_the_virtual_clock_inside_it_is_the_simulation(tmp_path, method):
    network = "digits-cnn" if method == "ensemble" else "digits-cnn-small"
    overrides = (
        f"method.name={method}", f"network.name={network}", "fleet.availability=uniform", "experiment.rounds=2",
    )  # fmt: skip
    simulated = run(experiment(*overrides), root=tmp_path / "here", workers=1)
    real = play(tmp_path / "flower", overrides, clock="virtual")
    one, two = saved_params(simulated), saved_params(real)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    same = ("macs_total", "bytes_up", "bytes_down", "stragglers", "seconds_virtual", "rounds", "devices")
    assert {k: real.summary()[k] for k in same} == {k: simulated.summary()[k] for k in same}


def test_real_time_trains_and_the_record_can_be_reported(tmp_path):
    record = play(tmp_path, (*REAL, "experiment.rounds=4", "training.epochs=3"), devices=3)
    summary = record.summary()
    assert summary["rounds"] == 4
    assert summary["accuracy"] > 0.3
    assert summary["stragglers"] == 0
    assert summary["bytes_up"] > 0
    assert summarise(group(read([record.folder])))
    status = json.loads((record.folder / STATUS).read_text())
    assert set(status["devices"]) == {"0", "1", "2"}
    assert all(d["state"] == "done" and d["rate_macs_per_s"] > 0 for d in status["devices"].values())
    groups = len(federated_job(experiment()).method.plan.groups)
    for device in status["devices"].values():
        assert len(device["rates"]) == groups
        assert all(0 <= rate <= 0.5 for rate in device["rates"])
        assert (device["share"] == 1.0) == (max(device["rates"]) == 0.0)


def test_the_second_message_finds_what_the_first_has_measured(tmp_path):
    what = experiment(*REAL)
    grid = fake(what, 3)
    play(tmp_path, REAL, grid=grid)
    profiles = [dict(c.state.config_records["leanfleet-profile"]) for c in grid.contexts.values()]
    assert all(profile["ratio"] != 1.0 for profile in profiles), "calibrated once, corrected ever since"


def test_a_round_is_shorter_for_who_is_sent_its_task_later(tmp_path, monkeypatch):
    monkeypatch.setattr(Node, "allowance", 0.0)

    class SlowGrid(FakeGrid):
        def push_messages(self, messages):
            time.sleep(0.3)
            return super().push_messages(messages)

    overrides = *REAL, "experiment.rounds=1"
    grid = fake(experiment(*overrides), 3, kind=SlowGrid)
    play(tmp_path, overrides, grid=grid)
    seconds = [Task.read(m.content).seconds for m in grid.pushed if is_train(m)]
    assert seconds[0] - seconds[2] > 0.5


def test_a_restarted_server_goes_on_where_it_stopped(tmp_path):
    what = experiment(*REAL, "experiment.rounds=4")
    grid = fake(what, 3)

    def die(node, asked, answer):
        if asked.metadata.group_id == "3":
            raise KeyboardInterrupt
        return answer

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, (*REAL, "experiment.rounds=4"), die, grid=grid)
    again = fake(what, 3)
    record = serve(again, what, Terms(resume=str(tmp_path / "tiny"), **QUICK))
    assert [event["round"] for event in record.events()] == [1, 2, 3, 4]
    assert {m.metadata.group_id for m in again.pushed if is_train(m)} == {"3", "4"}


def test_a_server_that_still_holds_the_record_is_waited_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(server, "_ASKS_SECONDS", 0.1)
    what = experiment(*REAL, "experiment.rounds=1")
    with begin(federated_job(what), tmp_path) as held:
        ends = threading.Timer(0.5, held.close)
        ends.start()
        record = serve(fake(what, 3), what, Terms(resume=str(held.folder), **QUICK))
    assert record.finished
    assert "in use by another process" in caplog.text


def test_a_record_that_stays_in_use_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_LETS_GO_SECONDS", 0.0)
    what = experiment(*REAL)
    with (
        begin(federated_job(what), tmp_path) as held,
        pytest.raises(RecordInUseError, match="in use by another process"),
    ):
        serve(fake(what, 3), what, Terms(resume=str(held.folder), **QUICK))


def test_too_few_devices_end_the_run_in_one_line(tmp_path):
    what = experiment(*REAL)
    grid = fake(what, 1)
    with pytest.raises(LeanfleetError, match=r"1 of 3 devices came; the record can be resumed"):
        serve(grid, what, Terms(runs=str(tmp_path), poll_seconds=0.01, wait_seconds=0.1))


def test_nobody_can_take_a_place_that_is_taken(tmp_path, caplog):
    what = experiment(*REAL, "fleet.per_round=2")
    grid = fake(what, 3)
    grid.contexts[102].node_config["partition-id"] = 1
    record = play(tmp_path, (*REAL, "fleet.per_round=2"), grid=grid)
    assert "node 102 is not taken in: device 1 is node 101 already" in caplog.text
    assert {m.metadata.dst_node_id for m in grid.pushed if is_train(m)} == {100, 101}
    assert record.finished


@pytest.mark.parametrize(
    "config",
    [{"clock": "sun"}, {"min-reports": "two"}, {"stale-weight": -1.0}, {"runs": 3}, {"clip-norm": True}],
)
def test_terms_that_make_no_sense_are_refused(config):
    with pytest.raises(ExperimentError, match="run configuration: "):
        Terms.of(config)


def test_terms_are_read_and_other_keys_left_alone():
    terms = Terms.of({"clock": "virtual", "min-reports": 2, "theirs": 1})
    assert (terms.clock, terms.min_reports) == ("virtual", 2)


@pytest.fixture
def own_data(tmp_path):
    """A device's own Parquet file: 100 digits, with the names of all classes."""
    digits = load("digits")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(digits.classes))
    )
    images = [image.permute(1, 2, 0).squeeze(-1).numpy() for image in digits.train.images[:100]]
    rows = {"image": images, "label": digits.train.labels[:100].tolist()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "own.parquet")
    return tmp_path / "own.parquet"


def test_a_device_may_bring_its_own_data(tmp_path, own_data, caplog):
    what = experiment(*REAL)
    grid = fake(what, 3)
    grid.contexts[101].node_config["data"] = str(own_data)
    record = play(tmp_path / "runs", REAL, grid=grid)
    assert record.finished
    # A fifth is kept for tests, as everywhere.
    assert "device 1 registered: node 101, 80 samples" in caplog.text
    assert all(event["rejected"] == [] for event in record.events())


def test_more_samples_than_agreed_are_not_taken(tmp_path, own_data, caplog):
    what = experiment(*REAL)
    grid = fake(what, 3)
    grid.contexts[101].node_config["data"] = str(own_data)
    play(tmp_path / "runs", REAL, grid=grid, most_samples=50, min_devices=2)
    assert "node 101 is not taken in: claims 80 samples where most-samples is 50" in caplog.text
    assert {m.metadata.dst_node_id for m in grid.pushed if is_train(m)} == {100, 102}


def test_a_device_that_may_not_train_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Caps, "paused", lambda self: True)
    monkeypatch.setattr(MeasuredClock, "wait", lambda self: self._sleep(0.2))
    record = play(tmp_path, (*REAL, "fleet.round_seconds=1.0", "experiment.rounds=1"), devices=3)
    (event,) = record.events()
    assert event["stragglers"] == 3
    states = json.loads((record.folder / STATUS).read_text())["devices"]
    assert {device["state"] for device in states.values()} <= {"no time left", "training"}
    assert event["macs_total"] == 0


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"partition-id": "first"}, "say which device this is"),
        ({"partition-id": 7}, "there are 3 devices"),
        ({"cpu-share": 7}, "cpu-share = 7"),
    ],
)
def test_a_node_that_is_set_up_wrongly_is_told_so(tmp_path, caplog, config, told):
    what = experiment(*REAL)
    grid = fake(what, 3)
    grid.contexts[101].node_config.update(config)
    play(tmp_path, (*REAL, "fleet.per_round=2", "experiment.rounds=1"), grid=grid)
    assert "node 101 failed" in caplog.text
    assert told in caplog.text
