"""AdaSplit behind a fake grid, where something goes wrong."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from small_flower_split import (
    SHORT,
    asked,
    changed,
    experiment,
    fake,
    jobs_are_made_once,  # noqa: F401
    play,
    stints,
    tensors,
)

from fake_grid import FakeGrid
from leanfleet.engines.center import as_bytes, as_tensor, named
from leanfleet.engines.flower import split_client
from leanfleet.engines.flower.messages import payload_of
from leanfleet.engines.hardware.measuring import MeasuredClock
from leanfleet.engines.job import make_job
from leanfleet.wire import Message as Wire
from leanfleet.wire import decode, encode

pytestmark = pytest.mark.usefixtures("jobs_are_made_once")


def as_uint8(data):
    return as_tensor(data) if data else torch.empty(0, dtype=torch.uint8)


def inside(change):
    """Change the activations inside of the payload."""

    def spoilt(payload):
        message = decode(payload)
        ups = {n: as_uint8(change(as_bytes(t))) for n, t in message.tensors.items() if n.isdigit()}
        return encode(Wire({**message.tensors, **ups}))

    return spoilt


def not_finite(up):
    message = decode(up)
    # Among the values, wherever they begin.
    message.tensors["activation"][8:24] = 0xFF
    return encode(message)


def labels(change):
    def spoilt(up):
        message = decode(up)
        return encode(Wire({**message.tensors, "labels": change(message.tensors["labels"])}))

    return spoilt


def relabelled(payload):
    message = decode(payload)
    return encode(Wire({f"{n}0" if n.isdigit() else n: t for n, t in message.tensors.items()}))


def state(change):
    def spoilt(payload):
        message = decode(payload)
        own = decode(as_bytes(message.tensors["state"])) if len(message.tensors["state"]) else Wire()
        own = Wire({n: change(t) for n, t in own.tensors.items()})
        return encode(Wire({**message.tensors, "state": as_tensor(encode(own))}))

    return spoilt


RUBBISH = {
    "not a message": lambda payload: b"x" * 100,
    "nothing": lambda payload: b"",
    "too long": lambda payload: bytes(len(payload) * 30),
    "other names": relabelled,
    "NaN": inside(not_finite),
    "a class there is not": inside(labels(lambda y: y + 200)),
    "another number of samples": inside(labels(lambda y: y[1:])),
    "cut short": inside(lambda up: up[:-5]),
    "empty": inside(lambda up: b""),
}


def rubbish_of_one(kind):
    def spoil(node, message, answer):
        if node != 101 or not asked(message).get("sends"):
            return answer
        return changed(answer, RUBBISH[kind](payload_of(answer.content)))

    return spoil


ALL_FROM_THE_FIRST = ("method.kappa=0.0", "method.selection=all")


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_costs_only_the_device_that_sends_it(tmp_path, kind, caplog):
    record = play(tmp_path, (*ALL_FROM_THE_FIRST, "experiment.rounds=1"), rubbish_of_one(kind))
    (event,) = record.events()
    assert event["heard"] == [5, 0, 5]
    (rejected,) = event["rejected"]
    assert rejected.startswith("client 1: ")
    assert "left out: " in caplog.text
    assert all(bool(t.isfinite().all()) for t in tensors(record).values())


def test_who_sent_rubbish_is_not_heard_for_a_while(tmp_path):
    overrides = (*ALL_FROM_THE_FIRST, "experiment.rounds=7", "training.iterations=2")
    record = play(tmp_path, overrides, rubbish_of_one("empty"))
    # Once, then a round without, once more, then two without.
    assert [len(event["rejected"]) for event in record.events()] == [1, 0, 1, 0, 0, 1, 0]
    assert [event["heard"] for event in record.events()] == [[2, 0, 2]] * 7


def test_a_state_beyond_numbers_does_not_end_the_run(tmp_path, caplog):
    def spoil(node, message, answer):
        if node != 101 or not asked(message).get("returns"):
            return answer
        huge = state(lambda t: torch.full_like(t, 3e38) if t.is_floating_point() else t)
        return changed(answer, huge(payload_of(answer.content)))

    record = play(tmp_path, ("experiment.rounds=2", "experiment.eval_every=1"), spoil)
    assert [event["loss"] for event in record.events()] == [None, None]
    assert [event["rejected"] for event in record.events()] == [[], []]
    assert "device 1: its copy of its client is beyond numbers" in caplog.text
    assert all(bool(t.isfinite().all()) for n, t in tensors(record).items() if n.startswith("server/"))


@pytest.mark.parametrize("change", [lambda t: t * 2, lambda t: t.reshape(-1)[:1]])
def test_a_state_that_does_not_fit_is_not_kept(tmp_path, change):
    """One that fits harms nobody but the client whose it is."""

    def spoil(node, message, answer):
        if node != 101 or not asked(message).get("returns"):
            return answer
        return changed(answer, state(change)(payload_of(answer.content)))

    record = play(tmp_path, ("experiment.rounds=1",), spoil)
    start = make_job(experiment()).method.client().tensors()
    kept = named(tensors(record), "clients/1/")
    fits = change(torch.ones(2)).shape == (2,)
    assert bool(record.events()[0]["rejected"]) == (not fits)
    if not fits:
        assert all(torch.equal(t, kept[name]) for name, t in start.items())


@pytest.mark.parametrize(
    ("claim", "told"), [({"steps": 10**6}, "claims 1000000 steps"), ({"rate": 1.0}, "its values are")]
)
def test_claims_beside_the_payload_are_checked_too(tmp_path, claim, told):
    def spoil(node, message, answer):
        if node == 101 and message.metadata.message_type == "train":
            values = {**dict(answer.content["leanfleet"]), **claim}
            answer.content = RecordDict({**answer.content, "leanfleet": ConfigRecord(values)})
        return answer

    record = play(tmp_path, ("experiment.rounds=2",), spoil)
    assert all(told in event["rejected"][0] for event in record.events())
    macs = named(tensors(record), "ledger/")["macs"]
    assert macs[1] == 0 < macs[0], "the server reckons what a step costs"


def test_the_only_one_that_is_heard_cannot_end_the_run(tmp_path):
    def spoil(node, message, answer):
        return changed(answer, b"x") if node == 101 and asked(message).get("sends") else answer

    overrides = ("method.eta=0.1", "method.kappa=0.0", "method.selection_window=100")
    record = play(tmp_path, overrides, spoil)
    assert record.finished
    heard = [event["heard"] for event in record.events()]
    assert all(row[1] == 0 for row in heard)
    assert sum(map(sum, heard)) > 0


def test_nothing_but_rubbish_leaves_the_server_as_it_was(tmp_path):
    def spoil(node, message, answer):
        return changed(answer, b"x") if asked(message).get("sends") else answer

    record = play(tmp_path, ("method.kappa=0.0", "experiment.rounds=1"), spoil)
    fresh, found = make_job(experiment()).method.server().tensors(), named(tensors(record), "server/")
    assert all(torch.equal(t, found[name]) for name, t in fresh.items())
    assert record.summary()["server_macs"] == 0


def silent_from(gone, round, first):
    def spoil(node, message, answer):
        a = asked(message)
        return None if node == gone and (a.get("round", -1), a.get("first", 0)) >= (round, first) else answer

    return spoil


def first_window(tmp_path, overrides):
    """A grid that was asked for a round."""
    grid = fake(experiment(*overrides))
    play(tmp_path, (*overrides, "experiment.rounds=1"), grid=grid)
    grid.pushed = [m for m in grid.pushed if asked(m).get("first") == 0]
    return grid


def test_a_client_that_vanishes_misses_its_mini_batches_and_others_stand_in(tmp_path, caplog):
    overrides = (*SHORT, "experiment.rounds=2", "method.kappa=0.0", "method.eta=0.3")
    grid = fake(experiment(*overrides))
    # The one that the server counts on goes after the first window of all.
    (chosen,) = (d for d, s in stints(first_window(tmp_path / "before", overrides)) if s["sends"])
    record = play(tmp_path, overrides, silent_from(100 + chosen, 0, 2), grid, min_devices=2)
    first, second = record.events()
    assert (first["stragglers"], second["stragglers"]) == (1, 1 + 3)
    assert (first["silent"], second["silent"]) == ([chosen], [])
    assert f"round 1: device {chosen} has not reported" in caplog.text
    assert second["heard"][chosen] == 0
    assert sum(second["heard"]) == 3
    assert record.summary()["accuracy"] > 0, "what it last sent is known"


def test_a_device_that_fails_does_not_keep_the_others_waiting(tmp_path, caplog):
    def spoil(node, message, answer):
        if node == 101 and message.metadata.message_type == "train":
            return Message(Error(2, "out of memory"), reply_to=message)
        return answer

    record = play(tmp_path, ("experiment.rounds=2",), spoil)
    assert [event["silent"] for event in record.events()] == [[1], [1]]
    assert record.events()[-1]["stragglers"] == 10
    assert "device 1 failed: out of memory" in caplog.text


class LateGrid(FakeGrid):
    """Delivers device 1's answer for the first round once anything of the second has been pushed."""

    def __init__(self, *args, **node_config):
        super().__init__(*args, **node_config)
        self.held: list[Message] = []
        self.spoil = self._hold

    def _hold(self, node, message, answer):
        if node == 101 and asked(message).get("round") == 0:
            self.held.append(answer)
            return None
        return answer

    def pull_messages(self, message_ids):
        if self.held and any(asked(m).get("round") == 1 for m in self.pushed):
            (late,) = self.held
            self._answers[late.metadata.reply_to_message_id] = late
            self.held = []
        return super().pull_messages(message_ids)


def test_what_comes_too_late_is_booked_and_its_state_kept(tmp_path):
    overrides = (*SHORT, "experiment.rounds=2", "method.kappa=0.5")
    grid = fake(experiment(*overrides), kind=LateGrid)
    record = play(tmp_path, overrides, grid=grid, min_devices=2)
    first, second = record.events()
    assert (first["silent"], first["stragglers"], second["late"]) == ([1], 3, [1])
    # All of the first round, too late, and the last window of the second.
    found = tensors(record)
    assert [int(found[f"clients/{i}/adam/0/step"]) for i in range(3)] == [6, 4, 6]
    macs = named(found, "ledger/")["macs"]
    assert macs.tolist() == [macs[0], macs[0] * 4 / 6, macs[0]]


class SlowClock(MeasuredClock):
    """Shows nine tenths of a second for each step."""

    def __init__(self, profile, caps, arrived):
        self.seconds = 0.0
        super().__init__(profile, caps, 0.0, now=lambda: self.seconds, sleep=lambda seconds: None)

    def spend(self, macs):
        self.seconds += 0.9


def test_a_device_without_time_sends_what_it_has_done(tmp_path, monkeypatch):
    monkeypatch.setattr(split_client, "MeasuredClock", SlowClock)
    overrides = ("fleet.iteration_seconds=0.7", "experiment.rounds=1", "method.kappa=0.0",
                 "method.selection=all", "method.selection_window=5")  # fmt: skip
    record = play(tmp_path, overrides)
    (event,) = record.events()
    # Of three and a half seconds at least half are theirs.
    assert all(1 < heard < 5 for heard in event["heard"])
    assert event["stragglers"] == 15 - sum(event["heard"])
