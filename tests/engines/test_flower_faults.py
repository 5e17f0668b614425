"""What goes wrong on a device or on the way costs only itself."""

from __future__ import annotations

import json

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from small_flower import (
    REAL,
    SHORT,
    changed,
    fake,
    is_train,
    jobs_are_made_once,  # noqa: F401
    play,
)

from fake_grid import FakeGrid
from leanfleet.engines.flower import fleet
from leanfleet.engines.flower.server import LOG
from leanfleet.engines.job import federated_job
from leanfleet.engines.local import saved_params
from leanfleet.errors import LeanfleetError
from leanfleet.federated import FedAvg
from leanfleet.wire import Message as Wire
from leanfleet.wire import decode, encode
from tiny_experiment import experiment

pytestmark = pytest.mark.usefixtures("jobs_are_made_once")


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


def test_an_answer_that_flower_cannot_open_is_its_senders_loss(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(fleet, "_SHORTEST_PATIENCE_SECONDS", 0.0)
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
