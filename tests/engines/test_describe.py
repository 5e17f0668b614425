from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanfleet.engines.describe import machine, network, parse_shape
from leanfleet.errors import NetworkError, TraceError, UserError


def test_a_reference_network_in_numbers() -> None:
    found = network("femnist-cnn")
    assert found["macs"] == 4_015_616
    assert found["macs_conv"] == 460_800 + 3_276_800
    assert found["params"] == 330_430
    assert [group["channels"] for group in found["groups"]] == [32, 64]
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert json.loads(json.dumps(found)) == found


def test_kept_layers_classes_and_shape_are_heeded() -> None:
    found = network("digits-cnn", keep=["conv1"], classes=5, shape=(3, 8, 8))
    assert [group["name"] for group in found["groups"]] == ["conv2", "conv3", "hidden"]
    assert found["layers"][-1]["macs"] == 128 * 5
    assert found["layers"][0]["macs"] == 9 * 3 * 32 * 64


def test_a_users_network_needs_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_described.py").write_text(
        "from torch import nn\ndef make(classes=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, classes))\n"
        "class Odd(nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NetworkError, match="--shape 3,32,32"):
        network("mine_described:make")
    assert network("mine_described:make", classes=4, shape=(3, 2, 2))["macs"] == 12 * 8 + 8 * 4
    with pytest.raises(TraceError):
        network("mine_described:Odd", shape=(3, 2, 2))


def test_the_machine_says_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "train.parquet").touch()
    monkeypatch.setenv("LEANFLEET_DATA", str(tmp_path))
    found = machine()
    assert found["data"]["cifar10"] == str(tmp_path / "cifar10")
    assert found["data"]["digits"] == "built in"
    assert found["data"]["mnist_writers"] is None
    assert found["packages"]["torch"]
    assert found["workers"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_shapes_are_three_numbers() -> None:
    assert parse_shape("3,32, 28") == (3, 32, 28)
    for text in ("3,32", "3x32x32", "3,0,32", "", "3,-2,4"):
        with pytest.raises(UserError, match="should be channels,height,width"):
            parse_shape(text)
