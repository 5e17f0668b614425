"""What is done with a finished gossip run: every node's own network, and their mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_gossip import experiment, job_of, restored

from leanfleet.engines import run
from leanfleet.engines.inference import evaluate, export, trained
from leanfleet.errors import UserError
from leanfleet.runs import Run

NORMED = "network.name=small_gossip:normed", "experiment.rounds=2"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(experiment(*NORMED), root=tmp_path_factory.mktemp("runs"), workers=1)


def test_evaluation_repeats_what_the_summary_says(record: Run) -> None:
    found, summary = evaluate(record.folder), record.summary()
    assert summary is not None
    assert found.accuracies == tuple(summary["accuracies"])
    assert found.accuracy == pytest.approx(summary["accuracy"])
    assert found.loss == pytest.approx(summary["loss"])
    assert (found.who, found.accuracy_recalibrated) == ("node", None)


def test_a_nodes_network_is_its_own(record: Run) -> None:
    nodes = restored(record, job_of(*NORMED))
    for i, node in nodes.items():
        net, _ = trained(record.folder, client=str(i))
        assert all(torch.equal(t, net.state_dict()[name]) for name, t in node.model().items())
        assert not net.training


def test_the_mean_is_of_all_nodes(record: Run, tmp_path: Path) -> None:
    nodes = restored(record, job_of(*NORMED)).values()
    export(record.folder, tmp_path / "mean.safetensors")
    found = load_file(tmp_path / "mean.safetensors")
    for name in found:
        wanted = torch.stack([node.model()[name].double() for node in nodes]).mean(0)
        assert torch.allclose(found[name].double(), wanted, atol=1e-6), name


def test_there_must_be_such_a_node(record: Run) -> None:
    with pytest.raises(UserError, match="there are nodes 0, 1, 2, 3, and 'mean'"):
        trained(record.folder, client="7")
