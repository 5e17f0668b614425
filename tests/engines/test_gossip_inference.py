"""What is done with a finished gossip run: every node's own network, and their mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_gossip import experiment, job_of, restored
from torch import nn

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


def test_nodes_are_named_by_their_numbers(tmp_path: Path) -> None:
    """Also those of two digits, and where one has left."""
    sets = ("fleet.devices=11", "fleet.absences=[[1, 2, -1]]", "method.name=sgp", "experiment.rounds=1")
    record = run(experiment("network.name=small_gossip:normed", *sets), root=tmp_path, workers=1)
    found, summary = evaluate(record.folder), record.summary()
    assert summary is not None
    assert found.numbers == (0, *range(2, 11))
    assert found.accuracies == tuple(summary["accuracies"])
    assert found.round == 1
    with pytest.raises(UserError, match="--device nonsense: torch cannot compute there"):
        evaluate(record.folder, device="nonsense")


def buffered(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A network with a buffer that it does not save, and a layer that is there twice."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(shape[1] * shape[2], 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()
    )
    net.append(net[3])
    net.append(nn.Linear(16, classes))
    net.register_buffer("positions", torch.arange(3.0), persistent=False)
    return net


def test_networks_with_more_than_they_save_can_be_exported(tmp_path: Path) -> None:
    sets = ("network.name=test_gossip_inference:buffered", "experiment.rounds=1")
    record = run(experiment(*sets), root=tmp_path, workers=1)
    net, _ = trained(record.folder, client="0")
    node = restored(record, job_of(*sets))[0]
    assert all(torch.equal(p, node.model()[name]) for name, p in net.named_parameters())
    export(record.folder, tmp_path / "net.safetensors")
