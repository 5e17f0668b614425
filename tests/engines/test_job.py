"""What is refused before a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanfleet.engines.job import make_job
from leanfleet.errors import NetworkError
from leanfleet.experiment import loads

NETS = """
from torch import nn

def few():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

def maps():
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU())
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
