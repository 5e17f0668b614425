"""The command line and the split family: where to cut, mixed comparisons, evaluating and exporting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from command_line import Cli, refused

SPLIT = """
[experiment]
name = "cut"
rounds = 2
[data]
partition = "classes(3)"
[network]
name = "digits-cnn-small"
[fleet]
devices = 3
[training]
iterations = 3
batch_size = 8
[method]
name = "adasplit"
cut = 7
"""
FEDERATED = """
[experiment]
name = "whole"
rounds = 2
[network]
name = "digits-cnn-small"
[fleet]
devices = 3
per_round = 2
[method]
name = "fedavg"
"""


@pytest.fixture
def cli(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "split.toml").write_text(SPLIT)
    (tmp_path / "federated.toml").write_text(FEDERATED)
    return cli


def test_nets_lists_places_to_cut(cli: Cli) -> None:
    found = json.loads(cli("nets", "lenet", "--cut", "--json").out)
    by_layers = {place["layers"]: place for place in found}
    assert by_layers[1] == {
        "node": "layer1_pool", "layer": "layer1.pool", "layers": 1, "shape": [20, 16, 16], "values": 5120,
        "client_macs": 1_536_000, "server_macs": 9_365_000, "client_params": 1520, "server_params": 2_991_360,
    }  # fmt: skip
    assert [by_layers[n]["values"] for n in (1, 2, 3, 4)] == [5120, 3200, 800, 500]
    for args in (("lenet", "--cut"), ("--json", "lenet", "--cut")):
        assert "layer1_pool" in cli("nets", *args).out
    shown = cli("nets", "--shape", "1,8,8", "digits-cnn", "--cut", "--classes", "5")
    assert "relu4" in shown.out
    assert shown.code == 0


@pytest.mark.parametrize("at", ["2", "layer2", "layer2_pool", "layer2.pool"])
def test_nets_shows_one_cut(at: str, cli: Cli) -> None:
    found = json.loads(cli("nets", "lenet", "--classes", "5", "--cut", at, "--json").out)
    assert found["at"] == (2 if at == "2" else at)
    assert (found["client_macs"], found["server_macs"]) == (7_936_000, 2_962_500)
    assert (found["client_params"], found["server_params"], found["values"]) == (26_570, 2_963_805, 3200)
    assert "50x8x8 = 3,200 numbers cross" in cli("nets", "lenet", f"--cut={at}").out


def test_nets_refuses_in_a_line(cli: Cli) -> None:
    refused(cli("nets", "--cut"), 2, "--cut: of which network?")
    refused(cli("nets", "lenet", "--cut", "5"), 2, "cut 5: leaves one half empty")
    refused(cli("nets", "resnet-20", "--cut", "stage1_0_conv1"), 2, "skip connection", "places to cut: conv0")
    refused(cli("nets", "lenet", "--cut", "--keep", "layer1"), 2, "--keep: does not go with --cut")


def test_families_are_compared_in_one_table(cli: Cli) -> None:
    result = cli("compare", "split.toml", "federated.toml", "--seeds", "1", "--workers", "1", "--json")
    assert result.code == 0, result.err
    tables = json.loads(result.out)
    assert [(g["method"], g["seeds"]) for g in tables["groups"]] == [("adasplit", [0]), ("fedavg", [0])]
    assert all(g["accuracy"]["mean"] > 0 and g["bytes_up"]["mean"] > 0 for g in tables["groups"])
    assert tables["plots"]
    again = cli("report", "runs/comparison")
    assert all(method in again.out for method in ("adasplit", "fedavg", "mean over clients"))


def test_what_can_be_done_with_a_split_run(cli: Cli) -> None:
    assert cli("run", "split.toml", "--workers", "1").code == 0
    again = cli("resume", "runs/cut", "--json")
    assert again.err == "runs/cut: already finished\n"
    (row,) = json.loads(again.out)["runs"]
    found = json.loads(cli("evaluate", "runs/cut", "--workers", "1", "--json").out)
    assert found["accuracy"] == row["accuracy"]
    assert found["accuracy_recalibrated"] is None
    assert len(found["accuracies"]) == 3
    shown = cli("evaluate", "runs/cut", "--workers", "1").out
    assert all(f"{100 * accuracy:.2f}" in shown for accuracy in (*found["accuracies"], found["accuracy"]))
    assert cli("export", "runs/cut", "-o", "net.safetensors", "--client", "1").out == "net.safetensors\n"
    assert "classifier.weight" in load_file("net.safetensors")
    refused(
        cli("export", "runs/cut", "-o", "net.safetensors"),
        2,
        "runs/cut: every client has a network",
        "--client 0",
    )
    assert cli("run", "federated.toml", "--workers", "1").code == 0
    refused(
        cli("export", "runs/whole", "-o", "n.ts", "--client", "1"), 2, "the same for all; leave out --client"
    )
