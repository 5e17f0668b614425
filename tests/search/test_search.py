from __future__ import annotations

import multiprocessing as mp
import sys
from dataclasses import replace

import pytest

from leanfleet import load_data
from leanfleet.engines.job import federated_job
from leanfleet.errors import LutError, UserError
from leanfleet.experiment import loads
from leanfleet.federated import Distreal
from leanfleet.search import FAST, OPTIMISER, PAPER, Progress, search
from leanfleet.search import run as run_module
from leanfleet.search.pretrain import start_goal
from leanfleet.subnet.lut import Lut

TINY = replace(
    FAST,
    population=10,
    design=12,
    refits=(4,),
    seeds=2,
    anchors=2,
    fresh=3,
    batch_size=16,
    steps=4,
    held_out=100,
)
TINY_PAPER = replace(PAPER, population=8, generations=2, seeds=1, anchors=2, fresh=2, batch_size=16, steps=4)
NET = "digits-cnn-small"
DISTREAL = """
[experiment]
name = "with-table"
[network]
name = "digits-cnn-small"
[data]
source = "digits"
[fleet]
devices = 2
per_round = 2
round_seconds = 1
[method]
name = "distreal"
lut = "{lut}"
"""
MINE = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(1, {channels}, 3, padding=1), nn.BatchNorm2d({channels}), nn.ReLU(),
        nn.Conv2d({channels}, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
"""


class StoppedByTestError(Exception):
    pass


@pytest.mark.parametrize("protocol", [TINY, TINY_PAPER])
def test_a_search_writes_a_table_that_distreal_takes(tmp_path, protocol):
    out = tmp_path / "net.lut"
    seen: list[Progress] = []
    found = search(NET, "digits", out, protocol=protocol, watch=seen.append)
    loaded = Lut.load(out)
    assert loaded == found
    assert not list(tmp_path.glob("*.partial"))
    assert loaded.rows[0].rates == (0.5, 0.5, 0.5)
    assert loaded.rows[-1].rates == (0.0, 0.0, 0.0)
    assert (loaded.rows[0].f2, loaded.rows[-1].f2) == pytest.approx((1.0, 0.0))
    assert [row.macs for row in loaded.rows] == sorted(row.macs for row in loaded.rows)
    assert all(row.stderr is not None and row.stderr >= 0 for row in loaded.rows)
    about = loaded.about
    assert about["network"] == NET
    assert about["data"] == "digits"
    assert about["protocol"]["name"] == protocol.name
    assert about["seed"] == 0
    assert about["version"]
    assert set(about["hypervolume"]) == set(about["hypervolume_uniform"]) == {"accuracy", "loss"}
    assert 0 < about["hypervolume"][protocol.measure] < 1.5
    assert about["measure"] == protocol.measure
    assert sum(about["questions"]) == protocol.trials
    assert about["cut_short"] == []
    assert about["grids"] == [[1, 8, 16], [1, 8, 16, 24, 32], [1, 8, 16, 24, 32]]
    assert 0 < about["share_outside_training"] < 1
    assert len(loaded.rows) <= protocol.population
    phases = [p.phase for p in seen]
    assert list(dict.fromkeys(phases)) == ["start", "anchors", "search", "front"]
    shares = [p.share for p in seen if p.phase == "start"]
    assert shares == sorted(shares)
    assert all(0 < share <= 1 for share in shares)
    assert shares[-1] == 1
    assert seen[-1].hypervolume is not None
    method = federated_job(loads(DISTREAL.format(lut=out))).method
    assert isinstance(method, Distreal)
    assert method.lut.rows == loaded.rows


@pytest.mark.parametrize("phase", ["start", "anchors", "search", "front"])
def test_an_interrupted_search_goes_on_to_the_same_table(tmp_path, phase):
    def stop(progress):
        if progress.phase == phase and (phase == "start" or (progress.step == 1 and progress.share < 0.9)):
            raise StoppedByTestError

    protocol = replace(TINY, refits=(4, 4))
    whole = search(NET, "digits", tmp_path / "whole.lut", protocol=protocol)
    out = tmp_path / "cut.lut"
    with pytest.raises(StoppedByTestError):
        search(NET, "digits", out, protocol=protocol, watch=stop)
    assert not out.exists()
    with pytest.raises(LutError, match="--resume"):
        search(NET, "digits", out, protocol=protocol)
    with pytest.raises(LutError, match="seed = 0, not 1"):
        search(NET, "digits", out, protocol=protocol, seed=1, resume=True)
    again = search(NET, "digits", out, protocol=protocol, resume=True)
    assert again.rows == whole.rows


def test_a_search_does_not_go_on_with_another_network_of_the_same_name(tmp_path, monkeypatch):
    def stop(progress):
        if progress.phase == "search":
            raise StoppedByTestError

    out = tmp_path / "cut.lut"
    monkeypatch.syspath_prepend(tmp_path)
    for channels in (8, 12):
        (tmp_path / "mine.py").write_text(MINE.format(channels=channels))
        sys.modules.pop("mine", None)
        expected = (
            pytest.raises(StoppedByTestError)
            if channels == 8
            else pytest.raises(LutError, match="begun with another network or other data")
        )
        with expected:
            search("mine:net", "digits", out, protocol=TINY, watch=stop, resume=channels == 12)


def test_a_search_does_not_go_on_with_other_labels_of_the_same_images(tmp_path):
    def stop(progress):
        if progress.phase == "search":
            raise StoppedByTestError

    digits = load_data("digits")
    out = tmp_path / "cut.lut"
    for shift, expected in (
        (0, pytest.raises(StoppedByTestError)),
        (1, pytest.raises(LutError, match="another network or other data of the same name")),
    ):
        train = replace(digits.train, labels=(digits.train.labels + shift) % 10)
        with expected:
            search(NET, replace(digits, train=train), out, protocol=TINY, watch=stop, resume=shift > 0)


def test_a_script_that_starts_itself_again_is_stopped_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(mp.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match="__main__"):
        search(NET, "digits", tmp_path / "net.lut", protocol=TINY)
    assert not list(tmp_path.iterdir())


def test_where_there_is_nothing_to_search_for_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("leanfleet.search.trials.Bench.gain", lambda self, rates, seed: (0.5, 0.5))
    with pytest.raises(LutError, match="the uniform table is as good"):
        search(NET, "digits", tmp_path / "net.lut", protocol=TINY)
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverges_is_said_to_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(LutError, match=r"diverges at a learning rate of 1e\+30; give a lower --lr"):
        search(NET, "digits", tmp_path / "net.lut", protocol=TINY, optimiser=replace(OPTIMISER, lr=1e30))
    assert not list(tmp_path.iterdir())


def test_a_pre_training_that_learns_nothing_is_named_as_the_likely_reason(tmp_path):
    protocol = replace(TINY, start_accuracy=0.99)
    with pytest.raises(LutError, match=r"a pre-training that has \d+%, not 99%: is --lr right"):
        search(NET, "digits", tmp_path / "net.lut", protocol=protocol, optimiser=replace(OPTIMISER, lr=1e-30))


def test_one_rate_is_nothing_to_search_for(tmp_path):
    with pytest.raises(LutError, match="only one rate to choose"):
        search(NET, "digits", tmp_path / "net.lut", protocol=TINY, keep=("conv1", "conv2", "hidden"))
    assert not list(tmp_path.iterdir())


def test_steps_are_timed_before_there_are_workers(tmp_path, monkeypatch):
    happened = []
    pool, profile = run_module.Pool, run_module.StepTime.profile
    monkeypatch.setattr(run_module, "Pool", lambda *given: happened.append("pool") or pool(*given))
    monkeypatch.setattr(
        run_module.StepTime, "profile", lambda *given: happened.append("profile") or profile(*given)
    )
    monkeypatch.setattr(
        "leanfleet.profiling.step_time._time",
        lambda local, batch, kept, end: 1e-3 + 1e-9 * local.step.plan.macs_of(kept),
    )
    search(NET, "digits", tmp_path / "net.lut", protocol=TINY, cost="seconds")
    assert happened == ["profile", "pool"]


def test_a_small_network_does_not_learn_too_much_before_it_starts(tmp_path):
    found = search("digits-cnn", "digits", tmp_path / "net.lut", protocol=replace(TINY, held_out=300))
    assert 0.45 <= found.about["start_accuracy"] <= 0.6


@pytest.mark.parametrize(("classes", "goal"), [(10, 0.45), (2, 0.694), (62, 0.399)])
def test_the_start_lies_between_guessing_and_all_right(classes, goal):
    assert start_goal(0.45, classes) == pytest.approx(goal, abs=1e-3)


@pytest.mark.parametrize("phase", ["search", "front"])
def test_what_is_interrupted_loses_no_short_training_that_was_saved(tmp_path, monkeypatch, phase):
    monkeypatch.setattr("leanfleet.search.trainings._SAVE_SECONDS", 0.0)
    seen = []

    def stop(progress):
        if progress.phase == phase and progress.share > 0.5:
            raise StoppedByTestError

    whole = search(NET, "digits", tmp_path / "whole.lut", protocol=TINY)
    out = tmp_path / "cut.lut"
    with pytest.raises(StoppedByTestError):
        search(NET, "digits", out, protocol=TINY, watch=stop)
    again = search(NET, "digits", out, protocol=TINY, resume=True, watch=seen.append)
    assert again.rows == whole.rows
    assert again.about["training_samples"] == whole.about["training_samples"]
    # The one that was under way is done again, what was done before it is not.
    assert next(p.share for p in seen if p.phase == phase) == pytest.approx(0.5, abs=0.15)


def test_there_must_be_something_to_resume_and_a_folder_to_write_to(tmp_path):
    with pytest.raises(LutError, match="nothing to resume"):
        search(NET, "digits", tmp_path / "a.lut", protocol=TINY, resume=True)
    with pytest.raises(LutError, match="no folder"):
        search(NET, "digits", tmp_path / "no" / "a.lut", protocol=TINY)
    with pytest.raises(LutError, match="is a folder"):
        search(NET, "digits", tmp_path, protocol=TINY)
    (tmp_path / "b.lut.partial").write_bytes(b"rubbish")
    with pytest.raises(LutError, match="damaged"):
        search(NET, "digits", tmp_path / "b.lut", protocol=TINY, resume=True)


def test_seconds_can_be_the_cost(tmp_path, monkeypatch):
    # A clock of its own: so small a network's steps last as long as the machine likes.
    monkeypatch.setattr(
        "leanfleet.profiling.step_time._time",
        lambda local, batch, kept, end: 1e-3 + 1e-9 * local.step.plan.macs_of(kept),
    )
    found = search(NET, "digits", tmp_path / "net.lut", protocol=TINY, cost="seconds")
    assert all(row.seconds is not None and row.seconds > 0 for row in found.rows)
    assert found.rows[0].seconds <= found.rows[-1].seconds
    assert Lut.load(tmp_path / "net.lut") == found


def test_a_step_that_dropout_does_not_shorten_is_no_cost(tmp_path, monkeypatch):
    monkeypatch.setattr("leanfleet.profiling.step_time._time", lambda *given: 1e-3)
    with pytest.raises(LutError, match="--cost macs"):
        search(NET, "digits", tmp_path / "net.lut", protocol=TINY, cost="seconds")


@pytest.mark.parametrize(
    "protocol",
    [
        replace(TINY_PAPER, seeds=2, screening=True),
        replace(TINY_PAPER, seeded="typical"),
        replace(TINY, seeded="careful"),
        replace(TINY, integer=True),
        replace(TINY_PAPER, tied=True, seeded="careful"),
    ],
    ids=["screening", "typical", "careful", "integer", "tied"],
)
def test_other_ways_to_search_make_tables_too(tmp_path, protocol):
    found = search(NET, "digits", tmp_path / "net.lut", protocol=protocol)
    about = found.about
    assert about["protocol"]["screening"] == protocol.screening
    # Screening saves short trainings, the others none.
    assert (sum(about["questions"]) < protocol.trials) == protocol.screening
    assert len(found.rows) >= 4
    assert not [name for name in about["cut_short"] if "rows" in name]
