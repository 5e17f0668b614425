"""Split runs repeat themselves: interrupted and resumed, by two workers, with dropout of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_split_runs import VARIANTS, experiment, tensors

from leanfleet.data import DataSet
from leanfleet.data import load as load_data
from leanfleet.engines.local import Progress, resume, run
from leanfleet.engines.staff import Staff
from leanfleet.runs import Run

DROPOUT = """
from torch import nn
import torch.nn.functional as F
class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 8, 3, stride=2), nn.Linear(72, classes)
    def forward(self, x):
        x = F.dropout(F.relu(self.conv(x)), 0.2, self.training)
        return self.last(F.dropout(x.flatten(1), 0.2, self.training))
"""


def told(record: Run) -> Any:
    """All that must be equal for equal runs: everything but the wall clock."""
    wall = {"seconds_wall", "workers"}
    events = [{k: v for k, v in event.items() if k not in wall} for event in record.events()]
    return events, {k: v for k, v in (record.summary() or {}).items() if k not in wall}


def assert_same(one: Run, two: Run) -> None:
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(t, second[name]) for name, t in first.items())
    assert told(one) == told(two)


class StopError(Exception):
    pass


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_run_resumes_to_the_same_result(
    variant: str, tmp_path: Path, references: Callable[[str], Run]
) -> None:
    for at in (1, 3):  # before and after the server is heard of

        def stop(progress: Progress, at: int = at) -> None:
            if progress.round == at and progress.share > 0.5:
                raise StopError

        with pytest.raises(StopError):
            run(experiment(*VARIANTS[variant]), root=tmp_path / str(at), workers=1, watch=stop)
        assert_same(resume(tmp_path / str(at) / "split"), references(variant))


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits").share_memory_()


@pytest.fixture(scope="module")
def two(digits: DataSet) -> Iterator[Callable[[str, Path], Run]]:
    """Runs by two workers, which are started once."""
    with Staff() as staff:
        yield lambda variant, root: run(
            experiment(*VARIANTS[variant]), root=root, workers=2, data=digits, staff=staff
        )


@pytest.mark.parametrize("variant", ["adasplit", "handover", "listening", "splitfed-1"])
def test_two_workers_agree_with_one(
    variant: str, tmp_path: Path, references: Callable[[str], Run], two: Callable[[str, Path], Run]
) -> None:
    one, both = references(variant), two(variant, tmp_path)
    first, second = tensors(one), tensors(both)
    assert all(torch.allclose(t, second[name], atol=1e-5) for name, t in first.items())
    for key in ("seconds_virtual", "bytes_up", "bytes_down", "macs_total", "server_macs", "bytes_authors"):
        assert one.summary()[key] == both.summary()[key]  # type: ignore[index]
    assert [e.get("heard") for e in one.events()] == [e.get("heard") for e in both.events()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_with_the_cpu(tmp_path: Path, references: Callable[[str], Run]) -> None:
    one = references("adasplit")
    other = run(experiment(*VARIANTS["adasplit"]), root=tmp_path, workers=1, device="cuda")
    first, second = tensors(one), tensors(other)
    assert all(torch.allclose(t, second[name], atol=1e-3) for name, t in first.items())


def test_a_network_s_own_dropout_is_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "droppy.py").write_text(DROPOUT)
    monkeypatch.chdir(tmp_path)
    sets = ("network.name=droppy:Net", "method.cut=relu", "experiment.rounds=3", "method.kappa=0.4")
    torch.manual_seed(1)
    whole = run(experiment(*sets), root=tmp_path / "whole", workers=1)

    def stop(progress: Progress) -> None:
        if progress.round == 2:
            raise StopError

    torch.manual_seed(2)
    with pytest.raises(StopError):
        run(experiment(*sets), root=tmp_path / "parted", workers=1, watch=stop)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert_same(resume(tmp_path / "parted" / "split"), whole)
    assert torch.equal(torch.get_rng_state(), before)
