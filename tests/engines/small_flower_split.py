"""A small AdaSplit fleet behind a fake grid, for the tests of it."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from fake_grid import FakeGrid
from leanfleet.engines.flower import server, split_client
from leanfleet.engines.flower.server import serve
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.job import SplitJob, make_job
from leanfleet.engines.local import default_workers
from leanfleet.experiment import dumps, loads

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


@pytest.fixture
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
