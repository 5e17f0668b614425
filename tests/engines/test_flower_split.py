"""AdaSplit behind a Flower grid: the simulation's model in few messages; what goes wrong costs only itself."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from small_flower_split import (
    LOCAL,
    QUICK,
    SHORT,
    asked,
    experiment,
    fake,
    jobs_are_made_once,  # noqa: F401
    play,
    stints,
    tensors,
)

from fake_grid import FakeGrid
from leanfleet.engines import run
from leanfleet.engines.center import named
from leanfleet.engines.flower import check
from leanfleet.engines.flower.fleet import STATUS
from leanfleet.engines.flower.messages import LOST, payload_of
from leanfleet.engines.flower.server import serve
from leanfleet.engines.flower.split_client import calibrate
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.inference import evaluate
from leanfleet.engines.job import make_job
from leanfleet.errors import ExperimentError, LeanfleetError
from leanfleet.report import group, read, summarise
from leanfleet.wire import decode

pytestmark = pytest.mark.usefixtures("jobs_are_made_once")

VARIANTS = {
    "masks": (),
    "one-message-a-round": ("method.selection_window=100", "fleet.availability=uniform", "fleet.ratio=4.0"),
    "windows-across-rounds": (
        "method.selection_window=3", "method.kappa=0.0", "method.eta=0.4", "method.masks=channel",
        "method.mask_scope=active", "method.values=int8",
    ),
    "no-masks": (
        "method.masks=none", "method.head=false", "method.selection=random", "method.activation_l1=1e-4",
        "method.values=bf16",
    ),
    "frozen": ("method.local_loss=none", "method.kappa=0.0", "method.selection=round_robin"),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_a_virtual_clock_it_is_the_simulation(tmp_path, variant):
    overrides = VARIANTS[variant]
    what, sent = experiment(*overrides), []
    grid = fake(what, {"clock": "virtual"})
    simulated = run(what, root=tmp_path / "here", workers=1)

    def watch(node, asked, answer):
        sent.append(len(payload_of(answer.content)))
        return answer

    real = play(tmp_path / "flower", overrides, watch, grid, clock="virtual")
    one, two = tensors(simulated), tensors(real)
    assert one.keys() == two.keys()
    assert all(torch.allclose(t, two[n], atol=1e-6) for n, t in one.items() if not n.startswith("ledger/"))
    same = (
        "accuracy", "macs_total", "server_macs", "bytes_authors", "forward_macs", "server_forward_macs",
        "stragglers", "rounds", "devices", "family", "server_bytes",
    )  # fmt: skip
    assert {k: real.summary()[k] for k in same} == {k: simulated.summary()[k] for k in same}
    assert real.summary()["seconds_virtual"] == pytest.approx(simulated.summary()["seconds_virtual"])
    for mine, its in zip(simulated.events(), real.events(), strict=True):
        assert mine.get("heard") == its.get("heard")
        losses = [[event.get(key) or 0.0 for key in ("server_loss", "local_loss")] for event in (mine, its)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert mine.get("accuracies") == its.get("accuracies")
    # What was really encoded: the simulation's activations, clients' states, and a frame for each window.
    assert real.summary()["bytes_up"] == sum(sent)
    frames = sum(sent) - simulated.summary()["bytes_up"] - real.summary()["bytes_states"]
    assert 0 < frames < 3000 * len(sent)


def test_a_message_holds_a_whole_round_at_first_and_then_a_window(tmp_path):
    grid = fake(experiment())
    play(tmp_path, grid=grid)
    asked_for = [(s["round"], s["first"], s["last"], s["returns"]) for d, s in stints(grid) if d == 1]
    windows = [(0, 2, False), (2, 4, False), (4, 5, True)]
    # Five iterations a round: the second one begins within a window.
    other = [(0, 1, False), (1, 3, False), (3, 5, True)]
    assert asked_for == [
        (0, 0, 5, True), *((1, *w) for w in windows), *((2, *w) for w in other),
    ]  # fmt: skip
    heard = Counter((s["round"], s["first"]) for _, s in stints(grid) if s["sends"])
    assert set(heard.values()) == {2}, "two of three, in the global phase"
    assert not any(round == 0 for round, _ in heard)


def test_real_time_trains_and_the_record_can_be_read(tmp_path):
    overrides = ("experiment.rounds=4", "training.iterations=12", "training.lr=5e-3",
                 "method.selection_window=4")  # fmt: skip
    record = play(tmp_path, overrides)
    summary = record.summary()
    assert summary["accuracy"] > 0.4
    assert (summary["rounds"], summary["stragglers"]) == (4, 0)
    assert 0 < summary["seconds_virtual"] < summary["seconds_wall"] + 1
    assert summary["macs_total"] == 3 * summary["forward_macs"]
    assert summarise(group(read([record.folder])))
    assert evaluate(record.folder, workers=1)
    status = json.loads((record.folder / STATUS).read_text())
    assert set(status["devices"]) == {"0", "1", "2"}
    assert all(d["state"] == "done" and d["rate_macs_per_s"] > 0 for d in status["devices"].values())


def test_clients_stay_where_they_are_between_messages(tmp_path):
    grid = fake(experiment())
    record = play(tmp_path, grid=grid)
    for device in range(3):
        (array,) = grid.contexts[100 + device].state.array_records["leanfleet-client"].values()
        kept, known = decode(array.data).tensors, named(tensors(record), f"clients/{device}/")
        assert kept.keys() == known.keys()
        assert all(torch.equal(t, known[name]) for name, t in kept.items())
    # Only what went up has been sent: nobody needed a state.
    assert record.summary()["bytes_down"] == 0


class ForgetfulGrid(FakeGrid):
    """Node 101 is started anew after it was told of the first window of the second round."""

    def push_messages(self, messages):
        ids = super().push_messages(messages)
        for m in messages:
            if m.metadata.dst_node_id == 101 and (asked(m).get("round"), asked(m).get("first")) == (1, 0):
                self.contexts[101].state = RecordDict()
        return ids


def test_a_node_that_has_lost_its_client_is_sent_what_the_server_last_saw(tmp_path):
    overrides = ("method.selection=all",)
    grid = fake(experiment(*overrides), kind=ForgetfulGrid)
    record = play(tmp_path, overrides, grid=grid)
    with_state = [
        (d, s) for m, (d, s) in zip(trained(grid), stints(grid), strict=True) if payload_of(m.content)
    ]
    assert [(d, s["round"], s["first"]) for d, s in with_state] == [(1, 1, 2)]
    assert [event["heard"] for event in record.events()[LOCAL:]] == [[5, 5, 5], [5, 5, 5]], (
        "no window is lost"
    )
    state = next(len(payload_of(m.content)) for m in trained(grid) if payload_of(m.content))
    assert record.summary()["bytes_down"] == state


def test_who_has_lost_what_there_never_was_is_not_asked_for_ever(tmp_path):
    def spoil(node, question, answer):
        if node == 101 and question.metadata.message_type == "train" and not asked(question)["round"]:
            told = {**answer.content["leanfleet"], "steps": 0, "state": LOST}
            answer.content = RecordDict({"leanfleet": ConfigRecord(told)})
        return answer

    grid = fake(experiment())
    grid.spoil = spoil
    record = play(tmp_path, grid=grid)
    assert record.finished
    assert any(why.startswith("client 1: ") for why in record.events()[0]["rejected"])


def trained(grid):
    return [m for m in grid.pushed if m.metadata.message_type == "train"]


def test_a_restarted_server_sends_clients_back_and_goes_on_to_the_same_end(tmp_path):
    what = experiment("experiment.rounds=4")
    whole = play(tmp_path / "whole", ("experiment.rounds=4",), clock="virtual")
    grid = fake(what, {"clock": "virtual"})

    def die(node, message, answer):
        if asked(message).get("round") == 2 and asked(message)["first"] > 0:
            raise KeyboardInterrupt
        return answer

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, ("experiment.rounds=4",), die, grid, clock="virtual")
    again = fake(what, {"clock": "virtual"})
    record = serve(again, what, Terms(resume=str(tmp_path / "split"), clock="virtual", **QUICK))
    assert [event["round"] for event in record.events()] == [1, 2, 3, 4]
    assert {s["round"] for _, s in stints(again)} == {2, 3}
    one, two = tensors(whole), tensors(record)
    assert all(torch.equal(t, two[n]) for n, t in one.items() if not n.startswith("ledger/"))
    assert record.events()[-1]["heard"] == whole.events()[-1]["heard"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("method.selection_window=1",), r"\[method\] selection_window = 1: needs a message.*such as 20"),
        (("method.server_grad=true",), r"\[method\] server_grad = true: needs a message.*leave it out"),
        (("method.client_nets=handover",), r'\[method\] client_nets = "handover": needs a message.*take "private"'),
        (("method.name=sl-basic",), "'sl-basic': needs messages within a round"),
        (("method.name=splitfed",), "'splitfed': needs messages within a round"),
    ],
)  # fmt: skip
def test_what_needs_a_message_a_mini_batch_is_refused_in_one_line(overrides, told):
    with pytest.raises(ExperimentError, match=told) as caught:
        check(experiment(*overrides))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("terms", "overrides", "told"),
    [
        ({"clip_norm": 1.0}, (), "clip-norm: is for updates of a whole network"),
        ({"stale_weight": 0.5}, (), "stale-weight: is for updates of a whole network"),
        ({"clock": "virtual"}, SHORT, "iteration_seconds: devices that pretend"),
    ],
)
def test_terms_that_mean_nothing_to_it_are_refused(tmp_path, terms, overrides, told):
    with pytest.raises(ExperimentError, match=told):
        play(tmp_path, overrides, **terms)
    assert not list(tmp_path.iterdir())


def test_data_of_a_device_s_own_are_refused(tmp_path, caplog):
    grid = fake(experiment())
    grid.contexts[101].node_config["data"] = "mine.parquet"
    with pytest.raises(LeanfleetError, match="2 of 3 devices came"):
        serve(grid, experiment(), Terms(runs=str(tmp_path), poll_seconds=0.01, wait_seconds=0.1))
    assert "with 'adasplit' a device trains its share" in caplog.text


def test_a_client_s_steps_are_timed():
    profile = calibrate(make_job(experiment()))
    assert profile.whole_rate > 0
    assert profile.whole_macs == make_job(experiment()).method.client_macs(sends=True).training * 8
