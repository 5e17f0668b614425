"""Real processes on loopback, with TLS and node authentication: a SuperLink, three SuperNodes, and all they start."""

from __future__ import annotations

import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from superlink import RealFleet, wait_for

from leanfleet.engines.flower.writing import write_keys
from leanfleet.engines.local import saved_params
from leanfleet.report import group, read, summarise
from leanfleet.runs import Run

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("flwr") is None, reason="needs Flower: leanfleet[flower]"),
]

TOML = """
[experiment]
name = "digits"
rounds = {rounds}
[network]
name = "digits-cnn-small"
[fleet]
devices = 3
per_round = 3
round_seconds = {seconds}
[training]
momentum = 0.9
batch_size = 16
epochs = 2
"""

SPLIT = """
[experiment]
name = "split"
rounds = 2
[data]
partition = "classes(5)"
[network]
name = "digits-cnn-small"
[fleet]
devices = 2
[training]
iterations = 12
batch_size = 16
[method]
name = "adasplit"
cut = 7
kappa = 0.5
eta = 1.0
selection_window = 12
"""

# What a node with `spoil` in its configuration does to its updates.
SPOILER = """
import torch
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp
from leanfleet.engines.flower.messages import payload_of
from leanfleet.wire import decode, encode

honest, client = client, ClientApp()

@client.query("register")
def register(message, context):
    return honest(message, context)

@client.train()
def train(message, context):
    answer = honest(message, context)
    if "spoil" in context.node_config:
        update = decode(payload_of(answer.content))
        next(iter(update.tensors.values())).fill_(torch.nan)
        data = encode(update)
        answer.content["payload"] = ArrayRecord({"payload": Array("uint8", (len(data),), "leanfleet", data)})
    return answer
"""


def events(folder: Path) -> list[dict]:
    return Run.open(folder).events() if (folder / "experiment.toml").exists() else []


def finished(fleet: RealFleet, folder: Path, seconds: float) -> None:
    """Wait for the end of a run, and say what Flower's log says if it ends otherwise."""

    def the_run():
        return (folder / "summary.json").exists()

    try:
        wait_for(the_run, seconds)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{fleet.last_log()}") from None


def test_a_fleet_of_real_processes_converges_and_meters_what_flower_meters(tmp_path):
    with RealFleet(tmp_path, TOML.format(rounds=3, seconds=200.0), 3) as fleet:
        fleet.run()
        folder = fleet.runs / "digits"
        finished(fleet, folder, 600)

        def flowers_books():
            run = fleet.list()[0]
            return run["status"] == "finished:completed" and run["network-traffic"]

        traffic = wait_for(flowers_books, 30)
    summary = Run.open(folder).summary()
    assert summary["accuracy"] > 0.6
    assert (summary["rounds"], summary["stragglers"]) == (3, 0)
    # Flower counts registrations, headers and heartbeats too.
    for ours, theirs in (("bytes_up", "inbound-bytes"), ("bytes_down", "outbound-bytes")):
        assert summary[ours] <= traffic[theirs] <= summary[ours] * 1.25 + 20_000
    assert summarise(group(read([folder])))
    rates = {device: found["rate_macs_per_s"] for device, found in status(folder)["devices"].items()}
    assert set(rates) == {"0", "1", "2"}
    assert all(rate > 0 for rate in rates.values())


def test_clients_of_adasplit_live_on_between_cold_processes(tmp_path):
    with RealFleet(tmp_path, SPLIT, 2) as fleet:
        fleet.run()
        folder = fleet.runs / "split"
        finished(fleet, folder, 600)
    found = events(folder)
    assert ["heard" in event for event in found] == [False, True]
    assert found[-1]["heard"] == [12, 12]
    assert (found[-1]["rejected"], found[-1]["silent"], found[-1]["stragglers"]) == ([], [], 0)
    # No state had to be sent: what a client was is in its node, and goes on from message to message.
    assert found[-1]["bytes_down"] == 0
    steps = [int(Run.open(folder).latest().tensors[f"clients/{i}/adam/0/step"]) for i in range(2)]
    assert steps == [24, 24]


def test_strangers_are_turned_away_on_both_sides(tmp_path):
    write_keys(tmp_path / "other", 1)
    theirs = tmp_path / "other" / "keys"
    with RealFleet(tmp_path, TOML.format(rounds=1, seconds=30.0), 1) as fleet:
        ours = fleet.app / "keys"
        fleet.start_stranger("unregistered", theirs / "node-0", ours / "ca.crt")
        fleet.start_stranger("mistrustful", ours / "node-0", theirs / "ca.crt")

        def both_have_ended():
            return fleet.ended("unregistered") and fleet.ended("mistrustful")

        wait_for(both_have_ended, 60)
        assert "Failed to activate SuperNode" in fleet.log("unregistered")
        assert "certificate verify failed" in fleet.log("mistrustful")


def status(folder: Path) -> dict:
    return json.loads((folder / "fleet.json").read_text())


def test_faults_cost_nothing_but_the_faulty_contributions(tmp_path):
    """One node sends NaN, one is stopped past the deadline, one is killed in mid-round; then the server is killed."""
    with RealFleet(tmp_path, TOML.format(rounds=4, seconds=25.0), 3) as fleet:
        with (fleet.app / "fleet_app.py").open("a") as code:
            code.write(SPOILER)
        fleet.signal("node-2", signal.SIGKILL)
        fleet.start_node(2, spoil=True)
        fleet.run("min-devices=1")
        folder = fleet.runs / "digits"

        def all_training():
            if not (folder / "fleet.json").exists():
                return False
            devices = status(folder)["devices"].values()
            return len(devices) == 3 and all(d["state"] == "training" for d in devices)

        wait_for(lambda: events(folder), 120)
        wait_for(all_training, 240)
        fleet.signal("node-1", signal.SIGSTOP)
        fleet.signal("node-0", signal.SIGKILL)
        fleet.start_node(0)
        before = len(events(folder))

        def the_next_round():
            return len(events(folder)) > before

        wait_for(the_next_round, 120)
        fleet.signal("node-1", signal.SIGCONT)
        (event,) = events(folder)[before : before + 1]
        (rejected,) = event["rejected"]
        assert rejected.startswith("device 2: tensor ")
        assert rejected.endswith("is not finite")
        assert event["silent"] == [0, 1]
        fleet.signal("link", signal.SIGKILL)
        done = len(events(folder))
        fleet.start_link()
        fleet.run(f'min-devices=1 resume="{folder}"')
        finished(fleet, folder, 400)
    found = events(folder)
    assert [event["round"] for event in found] == [1, 2, 3, 4]
    assert done < 4, "the server was killed before the end"
    assert all(p.isfinite().all() for p in saved_params(Run.open(folder)).values())
