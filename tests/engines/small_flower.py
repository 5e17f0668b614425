"""A small DISTREAL fleet behind a fake grid, for the tests of it."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from fake_grid import FakeGrid
from leanfleet.engines.flower import client
from leanfleet.engines.flower.messages import payload_of
from leanfleet.engines.flower.server import serve
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.job import FederatedJob, federated_job
from leanfleet.engines.local import default_workers
from leanfleet.experiment import dumps
from tiny_experiment import experiment

QUICK = {"poll_seconds": 0.01, "wait_seconds": 5.0}
REAL = "fleet.round_seconds=60.0", "experiment.rounds=2", "fleet.devices=3", "fleet.per_round=3"
# Short enough to wait for a device that is silent.
SHORT = *REAL, "fleet.round_seconds=3.0"


MADE: dict[str, FederatedJob] = {}


@pytest.fixture
def jobs_are_made_once(monkeypatch):
    """A cold process makes its job anew; here that would take most of the time."""

    def once(what, *own):
        if own:
            return federated_job(what, *own)
        return MADE.get(dumps(what)) or MADE.setdefault(dumps(what), federated_job(what))

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
