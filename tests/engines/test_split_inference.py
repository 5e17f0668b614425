"""Evaluating and exporting the networks of a split run."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from leanfleet.data import DataSet, Split, load
from leanfleet.engines.client_data import test_samples as samples_like
from leanfleet.engines.inference import evaluate, export, trained
from leanfleet.engines.job import SplitJob, make_job
from leanfleet.engines.local import run
from leanfleet.errors import DataError, UserError
from leanfleet.experiment import Experiment, loads
from leanfleet.nets import build
from leanfleet.runs import Run

TOML = """
[experiment]
rounds = 2
[data]
partition = "classes(3)"
[network]
name = "{net}"
[fleet]
devices = 3
[training]
iterations = 4
batch_size = 8
[method]
name = "{method}"
cut = 7
"""


def experiment(method: str, net: str = "digits-cnn-small", *sets: str) -> Experiment:
    return loads(TOML.format(method=method, net=net), sets)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    return {m: run(experiment(m), root=root, workers=1) for m in ("adasplit", "splitfed")}


def images(shift: int = 0) -> Tensor:
    data = load("digits")
    pixels = data.test.images.roll(shift, -1).float() / 255
    return (pixels - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(data.std).view(-1, 1, 1)


def said(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = net(x)
    return logits


@pytest.mark.parametrize("method", ["adasplit", "splitfed"])
def test_evaluation_repeats_what_the_run_said_and_what_exported_networks_do(
    method: str, records: dict[str, Run]
) -> None:
    record = records[method]
    found, summary = evaluate(record.folder, workers=1), record.summary()
    assert summary is not None
    assert found.accuracy == summary["accuracy"]
    assert list(found.accuracies or ()) == record.events()[-1]["accuracies"]
    assert (found.data, found.samples, found.round) == ("digits", 359, 2)
    assert found.accuracy_recalibrated is None
    job = make_job(experiment(method))
    assert isinstance(job, SplitJob)
    for client in range(3):
        net, data = trained(record.folder, client=str(client))
        hits = said(net, images()).argmax(1) == data.test.labels
        rows, weights = samples_like(job, client)
        assert float((weights * hits)[rows].sum()) == pytest.approx(found.accuracies[client], abs=1e-6)  # type: ignore[index]


def test_networks_are_personal_with_masks_and_the_same_when_averaged(records: dict[str, Run]) -> None:
    x = images()[:9]
    own, other = (trained(records["adasplit"].folder, client=c)[0] for c in ("0", "1"))
    assert not torch.allclose(said(own, x), said(other, x), atol=1e-2)
    nets = [trained(records["splitfed"].folder, client=c)[0] for c in ("0", "2", "new")]
    assert torch.allclose(said(nets[0], x), said(nets[1], x))
    assert torch.allclose(said(nets[0], x), said(nets[2], x), atol=1e-5)


@pytest.mark.parametrize("client", ["1", "new"])
def test_every_format_says_the_same(client: str, records: dict[str, Run], tmp_path: Path) -> None:
    folder, x = records["adasplit"].folder, images()[:5]
    expected = said(trained(folder, client=client)[0], x)
    for suffix in ("pt2", "ts", "safetensors"):
        export(folder, tmp_path / f"net.{suffix}", client=client)
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "net.ts"))(x), expected)
    net = build("digits-cnn-small", classes=10, shape=(1, 8, 8), seed=5)
    net.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(said(net.eval(), x), expected)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        assert json.loads(file.metadata()["leanfleet.json"])["shape"] == [1, 8, 8]


def test_a_network_with_response_norms_can_be_exported(tmp_path: Path) -> None:
    split = load("digits").train
    large = Split(torch.nn.functional.interpolate(split.images[:200], 32).contiguous(), split.labels[:200])
    data = DataSet.of("large", large, large, load("digits").classes)
    sets = ("method.cut=1", "training.iterations=1", "method.kappa=0.0", "experiment.rounds=1")
    record = run(experiment("adasplit", "lenet-small", *sets), root=tmp_path, workers=1, data=data)
    x = torch.randn(3, 1, 32, 32)
    expected = said(trained(record.folder, data, "0")[0], x)
    for suffix in ("pt2", "ts"):
        export(record.folder, tmp_path / f"net.{suffix}", data, "0")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "net.ts"))(x), expected)
    assert evaluate(record.folder, data=data, workers=1).accuracy == (record.summary() or {})["accuracy"]


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (None, r"every client has a network: say whose, --client 0 to 2, or 'new'"),
        ("3", "--client 3: there are clients 0 to 2, and 'new'"),
        ("-1", "--client -1: there are clients"),
        ("me", "--client me: there are clients"),
    ],
)
def test_whose_network_must_be_said(
    client: str | None, words: str, records: dict[str, Run], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        export(records["adasplit"].folder, tmp_path / "net.ts", client=client)


def test_other_data_must_fit(records: dict[str, Run]) -> None:
    with pytest.raises(DataError, match="no such data set"):
        evaluate(records["adasplit"].folder, "digts")


def test_writers_of_other_data_are_others(tmp_path: Path) -> None:
    """Whatever their numbers; of the run's own data they are the same."""
    digits = load("digits")
    train, test = digits.train.select(torch.arange(200)), digits.test.select(torch.arange(120))
    own = replace(
        digits, name="own", train=replace(train, writers=torch.arange(200) % 3),
        test=replace(test, writers=torch.arange(120) % 3),
    )  # fmt: skip
    strange = replace(own, name="other", test=replace(own.test, writers=torch.zeros(120, dtype=torch.int64)))
    sets = ("data.partition=writer", "training.iterations=1", "method.kappa=0.0", "experiment.rounds=1")
    record = run(experiment("adasplit", "digits-cnn-small", *sets), root=tmp_path, workers=1, data=own)
    unwritten = replace(strange, test=replace(strange.test, writers=None))
    found = [evaluate(record.folder, other, data=own, workers=1) for other in (strange, unwritten, own)]
    assert found[0] == found[1]
    assert found[2].accuracy == (record.summary() or {})["accuracy"]
