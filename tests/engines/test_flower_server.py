"""A Flower app without Flower's processes: the simulation's model, and what goes wrong costs only itself."""

from __future__ import annotations

import json
import threading
import time

import datasets
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fake_grid import FakeGrid
from leanfleet.data import load
from leanfleet.engines import run
from leanfleet.engines.flower import client, server
from leanfleet.engines.flower.fleet import STATUS, Node
from leanfleet.engines.flower.messages import Task, payload_of
from leanfleet.engines.flower.server import LOG, serve
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.hardware.measuring import MeasuredClock
from leanfleet.engines.job import FederatedJob, federated_job
from leanfleet.engines.local import begin, default_workers, saved_params
from leanfleet.errors import ExperimentError, LeanfleetError, RecordInUseError
from leanfleet.experiment import dumps
from leanfleet.federated import FedAvg
from leanfleet.report import group, read, summarise
from leanfleet.wire import Message as Wire
from leanfleet.wire import decode, encode
from tiny_experiment import experiment

QUICK = {"poll_seconds": 0.01, "wait_seconds": 5.0}
REAL = "fleet.round_seconds=60.0", "experiment.rounds=2", "fleet.devices=3", "fleet.per_round=3"
# Short enough to wait for a device that is silent.
SHORT = *REAL, "fleet.round_seconds=3.0"


@pytest.fixture(autouse=True)
def jobs_are_made_once(monkeypatch):
    """A cold process makes its job anew; here that would take most of the time."""
    made: dict[str, FederatedJob] = {}

    def once(what, *own):
        if own:
            return federated_job(what, *own)
        return made.get(dumps(what)) or made.setdefault(dumps(what), federated_job(what))

    monkeypatch.setattr(client, "federated_job", once)


def fake(what, devices, config=None, kind=FakeGrid):
    # One thread a device: as in the simulation, and two would wait for each other.
    return kind(client.app(what), devices, config, **{"cpu-share": 1e-9 + 1 / default_workers()})


def play(tmp_path, overrides=(), spoil=None, devices=10, grid=None, **terms):
    what = experiment(*overrides)
    config = {"clock": terms.get("clock", "real")}
    grid = grid or fake(what, devices, config)
    if spoil is not None:
        grid.spoil = spoil
    return serve(grid, what, Terms(runs=str(tmp_path), **QUICK, **terms))


def changed(answer, change):
    """An answer whose payload is another."""
    content = RecordDict(dict(answer.content))
    data = change(payload_of(content))
    content["payload"] = ArrayRecord({"payload": Array("uint8", (len(data),), "leanfleet", data)})
    answer.content = content
    return answer


def is_train(asked):
    return asked.metadata.message_type == "train"


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


def nan(data):
    message = decode(data)
    name = next(iter(message.tensors))
    message.tensors[name].fill_(torch.nan)
    return encode(message)


def huge(data):
    message = decode(data)
    return encode(Wire({n: t * 1e12 for n, t in message.tensors.items()}, message.scalars))


def liar(data):
    message = decode(data)
    return encode(Wire(message.tensors, {"weight": message.scalars["weight"] * 1e3}))


def reshaped(data):
    message = decode(data)
    return encode(Wire({n: t.reshape(-1) for n, t in message.tensors.items()}, message.scalars))


@pytest.mark.parametrize(
    "garbage", [nan, huge, liar, reshaped, lambda data: b"x" * 100, lambda data: bytes(len(data) * 3)]
)
def test_garbage_costs_only_the_device_that_sends_it(tmp_path, garbage, caplog):
    def spoil(node, asked, answer):
        return changed(answer, garbage) if node == 101 and is_train(asked) else answer

    record = play(tmp_path, REAL, spoil, devices=3)
    events = record.events()
    assert all(len(e["rejected"]) == 1 and e["rejected"][0].startswith("device 1: ") for e in events)
    assert "device 1: left out" in caplog.text
    assert all(torch.isfinite(t).all() for t in saved_params(record).values())
    start = dict(federated_job(experiment(*REAL)).net.named_parameters())
    assert any(not torch.equal(t, start[n]) for n, t in saved_params(record).items()), "the others go on"


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ({"macs": 1e17}, "claims 1e+17 MACs"),
        ({"kept": b"\xff" * 4}, "this network has not"),
        ({"kept": bytes(4)}, "this network has not"),
        ({"kept": b"\1\0"}, "this network has not"),
    ],
)
def test_claims_beside_the_payload_are_checked_too(tmp_path, claim, told):
    def spoil(node, asked, answer):
        if node == 101 and is_train(asked):
            values = dict(answer.content["leanfleet"])
            answer.content = RecordDict({**answer.content, "leanfleet": ConfigRecord({**values, **claim})})
        return answer

    record = play(tmp_path, REAL, spoil, devices=3)
    assert all(told in event["rejected"][0] for event in record.events())
    assert record.summary()["macs_total"] < 1e16


def test_a_silent_device_costs_the_rounds_nothing_and_is_named(tmp_path, caplog):
    def spoil(node, asked, answer):
        return None if node == 101 and is_train(asked) else answer

    record = play(tmp_path, SHORT, spoil, devices=3)
    first, second = record.events()
    assert (first["silent"], first["stragglers"], first["rejected"]) == ([1], 1, [])
    assert "round 1: device 1 has not reported" in caplog.text
    # It is busy, as far as anybody knows: the second round begins without it.
    assert (second["silent"], second["stragglers"]) == ([], first["stragglers"])


def test_all_devices_are_waited_for_where_the_terms_say_so(tmp_path):
    def spoil(node, asked, answer):
        return None if node == 101 and is_train(asked) else answer

    with pytest.raises(LeanfleetError, match="round 2: 2 of 3 devices came"):
        play(tmp_path, SHORT, spoil, devices=3, min_devices=3)


class StumblingGrid(FakeGrid):
    """One whose answers of node 101 cannot be opened, and take the others' along if they are pulled together."""

    def pull_messages(self, message_ids):
        ids = [i for i in message_ids if i in self._answers]
        bad = [i for i in ids if self._node(i) == 101 and is_train(self._asked(i))]
        found = super().pull_messages(ids)
        if bad:
            raise IndexError("list index out of range")
        return found

    def _asked(self, message_id):
        return self.pushed[int(message_id[1:])]

    def _node(self, message_id):
        return self._asked(message_id).metadata.dst_node_id


def test_an_answer_that_flower_cannot_open_is_its_senders_loss(tmp_path, caplog):
    overrides = *SHORT, "experiment.rounds=3"
    record = play(tmp_path, overrides, grid=fake(experiment(*overrides), 3, kind=StumblingGrid))
    assert "an answer cannot be opened: list index out of range" in caplog.text
    assert "device 1 failed: its answer cannot be opened" in caplog.text
    # Nobody knows whose it was the first time.
    assert [event["silent"] for event in record.events()][1:] in ([[1], [1]], [[1], []], [[], [1]], [[], []])
    assert record.finished


class FullGrid(FakeGrid):
    """One that takes no task for node 101."""

    def push_messages(self, messages):
        (message,) = messages
        if message.metadata.dst_node_id == 101 and is_train(message):
            return [""]
        return super().push_messages([message])


def test_a_message_that_is_not_taken_keeps_nobody_waiting(tmp_path, caplog):
    overrides = *REAL, "experiment.rounds=1"
    record = play(tmp_path, overrides, grid=fake(experiment(*overrides), 3, kind=FullGrid))
    assert record.events()[0]["silent"] == [1]
    assert "device 1 failed: the SuperLink does not take a message for it" in caplog.text


def test_an_update_far_longer_than_usual_is_left_out(tmp_path):
    def longer(data):
        message = decode(data)
        return encode(Wire({n: 30 * t for n, t in message.tensors.items()}, message.scalars))

    def spoil(node, asked, answer):
        late = is_train(asked) and int(asked.metadata.group_id) > 2
        return changed(answer, longer) if node == 101 and late else answer

    steady = "experiment.rounds=3", "method.name=fedavg", "training.lr=0.001", "training.milestones=[]"
    record = play(tmp_path, (*REAL, *steady), spoil, devices=3)
    *before, last = record.events()
    assert all(event["rejected"] == [] for event in before)
    assert "is usual" in last["rejected"][0]


def test_a_network_beyond_numbers_is_not_kept(tmp_path, caplog, monkeypatch):
    finish = FedAvg.finish

    def spoilt(self, params, total):
        return {name: p / 0 for name, p in finish(self, params, total).items()}

    monkeypatch.setattr(FedAvg, "finish", spoilt)
    record = play(tmp_path, (*REAL, "method.name=fedavg", "experiment.rounds=1"), devices=3)
    assert "round 1: what came makes a network beyond numbers; the old one is kept" in caplog.text
    assert record.events()[0]["accuracy"] > 0


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


def test_a_device_that_fails_does_not_keep_the_others_waiting(tmp_path, caplog):
    def spoil(node, asked, answer):
        return (
            Message(Error(2, "out of memory"), reply_to=asked) if node == 101 and is_train(asked) else answer
        )

    record = play(tmp_path, (*REAL, "experiment.rounds=1"), spoil, devices=3)
    assert record.events()[0]["silent"] == [1]
    assert record.summary()["seconds_virtual"] < 60, "the round did not wait for its deadline"
    assert "device 1 failed: out of memory" in caplog.text


def delayed(store):
    """Holds back device 1's first update until the next round has been sent."""

    def spoil(node, asked, answer):
        if node == 101 and is_train(asked) and not store:
            store.append(answer)
            return None
        return answer

    return spoil


class LateGrid(FakeGrid):
    """Delivers what was held back once anything of the second round has been pushed."""

    def __init__(self, *args, **node_config):
        super().__init__(*args, **node_config)
        self.held: list[Message] = []
        self.spoil = delayed(self.held)

    def pull_messages(self, message_ids):
        if self.held and any(m.metadata.group_id == "2" for m in self.pushed):
            late = self.held[0]
            if late.metadata.reply_to_message_id in message_ids:
                self._answers[late.metadata.reply_to_message_id] = late
        return super().pull_messages(message_ids)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_late_update_is_discarded_or_folded_in(tmp_path, weight, caplog):
    overrides = (*SHORT, "method.name=fedavg")
    grid = fake(experiment(*overrides), 3, kind=LateGrid)
    late = play(tmp_path, overrides, grid=grid, stale_weight=weight, min_devices=2)
    first, second = late.events()
    assert first["silent"] == [1]
    assert second["late"] == [1]
    assert ("device 1: left out: its round is over" in caplog.text) == (weight == 0.0)
    # Folded in it has changed the network; the same run without it has another one.
    alone = tmp_path / "alone"
    grid = fake(experiment(*overrides), 3, kind=LateGrid)
    without = play(alone, overrides, grid=grid, stale_weight=0.0, min_devices=2)
    same = [torch.equal(p, saved_params(without)[n]) for n, p in saved_params(late).items()]
    assert all(same) == (weight == 0.0)
    # What a device spent too late is spent all the same.
    assert late.summary()["bytes_up"] > 5 * first["bytes_up"] / 2 * 0.99
    lines = [json.loads(line) for line in (late.folder / LOG).read_text().splitlines()]
    assert {"device": 1, "round": 1} in [{k: line.get(k) for k in ("device", "round")} for line in lines]


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
