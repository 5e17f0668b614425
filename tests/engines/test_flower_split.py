"""AdaSplit behind a Flower grid: the simulation's model in few messages; what goes wrong costs only itself."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fake_grid import FakeGrid
from leanfleet.engines import run
from leanfleet.engines.center import as_bytes, as_tensor, named
from leanfleet.engines.flower import check, server, split_client
from leanfleet.engines.flower.fleet import STATUS
from leanfleet.engines.flower.measuring import MeasuredClock
from leanfleet.engines.flower.messages import payload_of
from leanfleet.engines.flower.server import serve
from leanfleet.engines.flower.split_client import calibrate
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.inference import evaluate
from leanfleet.engines.job import SplitJob, make_job
from leanfleet.engines.local import default_workers
from leanfleet.errors import ExperimentError, LeanfleetError
from leanfleet.experiment import dumps, loads
from leanfleet.report import group, read, summarise
from leanfleet.wire import Message as Wire
from leanfleet.wire import decode, encode

QUICK = {"poll_seconds": 0.01, "wait_seconds": 5.0}
TOML = """
[experiment]
name = "split"
rounds = 3
eval_every = 3
[data]
partition = "classes(3)"
[network]
name = "digits-cnn-small"
[fleet]
devices = 3
[training]
iterations = 5
batch_size = 8
[method]
name = "adasplit"
cut = 7
kappa = 0.34
selection_window = 2
"""
LOCAL, ROUNDS = 1, 3
# A limit that a machine under load keeps, and that a test can wait for.
SHORT = ("fleet.iteration_seconds=1.5", "training.iterations=3")


def experiment(*overrides):
    return loads(TOML, overrides)


MADE: dict[str, SplitJob] = {}


@pytest.fixture(autouse=True)
def jobs_are_made_once(monkeypatch):
    """A cold process makes its job anew; here that would take most of the time."""

    def once(what):
        return MADE.get(dumps(what)) or MADE.setdefault(dumps(what), make_job(what))

    for module in (split_client, server):
        monkeypatch.setattr(module, "make_job", once)


def fake(what, config=None, kind=FakeGrid):
    # One thread a device: as in the simulation.
    share = 1e-9 + 1 / default_workers()
    return kind(split_client.app(what), what.fleet.devices, config, **{"cpu-share": share})


def play(tmp_path, overrides=(), spoil=None, grid=None, **terms):
    what = experiment(*overrides)
    grid = grid or fake(what, {"clock": terms.get("clock", "real")})
    if spoil is not None:
        grid.spoil = spoil
    return serve(grid, what, Terms(runs=str(tmp_path), **QUICK, **terms))


def tensors(record):
    return record.latest().tensors


def asked(message):
    return dict(message.content["leanfleet"])


def stints(grid):
    """What devices were asked for, in the order of time."""
    return [
        (m.metadata.dst_node_id - 100, asked(m)) for m in grid.pushed if m.metadata.message_type == "train"
    ]


def changed(answer, payload):
    content = RecordDict(dict(answer.content))
    content["payload"] = ArrayRecord({"payload": Array("uint8", (len(payload),), "leanfleet", payload)})
    answer.content = content
    return answer


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


# -- what goes wrong -----------------------------------------------------------------------------------------


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


# -- what cannot live there ----------------------------------------------------------------------------------


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
