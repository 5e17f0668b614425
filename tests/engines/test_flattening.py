"""Networks that flatten with `view`, as tutorials write them: batches have their channels last in memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfleet.data import DataSet, Split
from leanfleet.engines import run
from leanfleet.engines.inference import evaluate, export, trained
from leanfleet.experiment import loads
from leanfleet.nets.layout import images, take_channels_last

TOML = """
[experiment]
name = "views"
rounds = 1
eval_every = 1
[network]
name = "test_flattening:{net}"
[fleet]
devices = 2
{fleet}
[training]
batch_size = 8
{training}
[method]
name = "{method}"
"""
FAMILIES = {
    "fedavg": ("per_round = 2", "", ""),
    "distreal": ("per_round = 2", "", ""),
    "sgp": ('graph = "complete"', "iterations = 2", ""),
    "sl-basic": ("", "iterations = 2", 'cut = "{cut}"'),
    "adasplit": ("", "iterations = 2", 'cut = "{cut}"\nkappa = 0.0'),
}


class Convolutional(nn.Module):
    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * (height // 2) * (width // 2), 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class Perceptron(nn.Module):
    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.pixels = shape[0] * shape[1] * shape[2]
        self.fc1, self.fc2 = nn.Linear(self.pixels, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x.view(-1, self.pixels))))


def convolutional(shape: tuple[int, int, int]) -> nn.Module:
    return Convolutional(shape)


def perceptron(shape: tuple[int, int, int]) -> nn.Module:
    return Perceptron(shape)


def blobs(channels: int) -> DataSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 10
    pixels = torch.randint(0, 256, (120, channels, 6, 6), generator=generator, dtype=torch.uint8)
    return DataSet.of(
        "blobs", Split(pixels[:80], labels[:80]), Split(pixels[80:], labels[80:]), tuple("abcdefghij")
    )


@pytest.mark.parametrize(
    ("method", "net", "channels"),
    [
        ("fedavg", "convolutional", 1),
        ("fedavg", "convolutional", 3),
        ("distreal", "perceptron", 3),
        ("sgp", "convolutional", 1),
        ("sgp", "perceptron", 3),
        ("sl-basic", "convolutional", 1),
        ("sl-basic", "perceptron", 3),
        ("adasplit", "convolutional", 3),
    ],
)
def test_they_train_end_and_leave_networks_of_use(
    method: str, net: str, channels: int, tmp_path: Path
) -> None:
    cut = {"convolutional": "conv", "perceptron": "fc1"}[net]
    fleet, training, more = FAMILIES[method]
    text = TOML.format(net=net, fleet=fleet, training=training, method=method) + more.format(cut=cut)
    data = blobs(channels)
    record = run(loads(text), root=tmp_path, workers=1, data=data)
    summary = record.summary()
    assert summary is not None
    assert evaluate(record.folder, workers=1, data=data).accuracy == pytest.approx(summary["accuracy"])
    who = None if method in ("fedavg", "distreal") else "0"
    found, _ = trained(record.folder, data, who)
    x = torch.rand(3, channels, 6, 6)
    for suffix in ("pt2", "ts"):
        export(record.folder, tmp_path / f"net.{suffix}", data, who)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), found(x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.testing.assert_close(torch.jit.load(str(tmp_path / "net.ts"))(x), found(x))


def test_only_networks_that_need_it_get_a_copy_of_their_batches() -> None:
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    for net, hooks in ((flat, 0), (perceptron((3, 6, 6)), 1), (nn.Linear(5, 2), 0)):
        take_channels_last(net, images((3, 6, 6)))
        assert len(net._forward_pre_hooks) == hooks
