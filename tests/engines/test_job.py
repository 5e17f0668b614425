"""What is refused before a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanfleet.engines.job import make_job
from leanfleet.errors import ExperimentError, NetworkError
from leanfleet.experiment import loads

NETS = """
from torch import nn

def few():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

def maps():
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU())

def coloured():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
"""


@pytest.mark.parametrize(("function", "found"), [("few", "(2, 5)"), ("maps", "(2, 10, 6, 6)")])
def test_a_network_that_is_no_classifier_of_these_classes_is_refused(
    function: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfit_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError) as caught:
        make_job(loads(f'[network]\nname = "unfit_nets:{function}"'))
    assert str(caught.value) == f"Sequential gives {found} for 2 images; 10 classes need (2, 10)"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("few", r"gives \(2, 5\) for 2 images; 10 classes need \(2, 10\)"),
        ("maps", r"gives \(2, 10, 6, 6\) for 2 images"),
        ("coloured", r"the network does not take \(1, 8, 8\)"),
    ],
)
def test_gossip_refuses_them_too(
    function: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfit_gossip.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError, match=words):
        make_job(loads(f'[network]\nname = "unfit_gossip:{function}"\n[method]\nname = "sgp"'))


def test_a_device_with_a_single_sample_needs_a_network_that_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "normed_net.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    text = '[network]\nname = "{}"\n[data]\npartition = "{}"\n[fleet]\ndevices = 20\nper_round = 2'
    with pytest.raises(
        ExperimentError, match=r"partition: device 0 has a single sample: Expected more than 1"
    ):
        make_job(loads(text.format("normed_net:normed", "iid(1)")))
    make_job(loads(text.format("digits-cnn-small", "iid(1)")))
    make_job(loads(text.format("normed_net:normed", "iid(2)")))
