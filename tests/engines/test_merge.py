"""Nodes of a finished run agree afterwards, by the final rounds that it did not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_gossip import TOML, experiment

from command_line import Cli, refused
from leanfleet.engines.local import merge, run
from leanfleet.errors import RecordError
from leanfleet.experiment import load, loads
from leanfleet.runs import Run

PLAIN = f"{TOML.partition('[method]')[0]}[method]\nname = 'sgp'\n"
SPARSE_PUSH = "method.name=sparse-push", "method.density=0.1", "method.final_rounds=0"


def same(one: Run, other: Run) -> bool:
    """Whether two runs came to the same, bit for bit, in all but the time that it took."""
    left, right = one.latest(), other.latest()
    assert left is not None
    assert right is not None
    timeless = [
        {k: v for k, v in (r.summary() or {}).items() if k not in ("seconds_wall", "method")}
        for r in (one, other)
    ]
    tensors = left.tensors.keys() == right.tensors.keys() and all(
        torch.equal(t, right.tensors[name]) for name, t in left.tensors.items()
    )
    return tensors and timeless[0] == timeless[1]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Sparse-Push, as it ends."""
    return run(experiment(*SPARSE_PUSH), root=tmp_path_factory.mktemp("runs"), workers=1)


def test_sparse_push_that_is_merged_is_scsp(sparse: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sparse.folder.iterdir()}
    merged = merge(sparse.folder, rounds=4)
    assert merged.folder == sparse.folder.with_name("small-merged")
    assert same(merged, run(experiment(), root=tmp_path, workers=1))
    assert {path: path.read_bytes() for path in sparse.folder.iterdir()} == before
    assert load(merged.experiment_file).options.model_dump()["final_rounds"] == 4
    again = merge(sparse.folder, rounds=4)
    assert again.folder.name == "small-merged-2"


def test_as_many_rounds_as_the_graph_needs(sparse: Run) -> None:
    found = merge(sparse.folder).summary()
    assert found is not None
    # ln(0.001) / ln(1/3): a ring of four whose nodes keep a third.
    assert found["final_rounds"] == 7
    assert found["accuracy_before_final"] == (sparse.summary() or {})["accuracy_before_final"]
    assert found["disagreement"] < 1e-3


def test_the_command_compares_before_and_after(cli: Cli, sparse: Run) -> None:
    shown = cli("merge", str(sparse.folder), "--rounds", "2", "--json")
    told = json.loads(shown.out)
    before, after = (row["record"] for row in told["runs"])
    assert Path(before) == sparse.folder
    assert (Run.open(after).summary() or {})["final_rounds"] == 2
    refused(cli("merge", str(sparse.folder.with_name("nowhere"))), 2, "nowhere: no such run record")


def test_what_had_final_rounds_goes_on_from_before_them(tmp_path: Path) -> None:
    scsp = run(experiment(), root=tmp_path, workers=1)
    assert same(merge(scsp.folder, rounds=4), scsp)


@pytest.mark.parametrize("method", ["sgp", "d-psgd", "choco", "deepsqueeze"])
def test_every_method_can_be_merged(tmp_path: Path, method: str) -> None:
    own = f"method.name={method}", "method.final_rounds=0"
    density = ("method.density=0.1",) if method in ("choco", "deepsqueeze") else ()
    found = run(loads(PLAIN, (*own, *density)), root=tmp_path, workers=1)
    after = merge(found.folder, rounds=30).summary()
    assert after is not None
    assert after["disagreement"] < 1e-6


def test_a_run_that_was_interrupted_is_merged_as_it_is(tmp_path: Path) -> None:
    # Else a shorter run would lower its learning rate earlier.
    steady = "training.milestones=[]"

    def stop(progress: object) -> None:
        if getattr(progress, "round", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment(*SPARSE_PUSH, steady), root=tmp_path, workers=1, watch=stop)
    merged = merge(tmp_path / "small", rounds=4)
    assert [event["round"] for event in merged.events()] == [1, 2, 3]
    shorter = run(
        experiment("experiment.rounds=2", "experiment.name=shorter", steady), root=tmp_path, workers=1
    )
    assert (merged.summary() or {})["accuracy"] == (shorter.summary() or {})["accuracy"]


def test_what_cannot_be_merged_says_so(tmp_path: Path) -> None:
    federated = run(
        loads('[experiment]\nrounds = 1\n[network]\nname = "digits-cnn-small"\n[method]\nname = "fedavg"\n'),
        root=tmp_path,
        workers=1,
    )
    with pytest.raises(RecordError, match="fedavg is no gossip method"):
        merge(federated.folder)
    with Run.create("apart", PLAIN, tmp_path) as apart:
        pass
    with pytest.raises(RecordError, match="no checkpoint yet"):
        merge(apart.folder)
    assert not list(tmp_path.glob("*-merged"))
