"""What split runs do with what goes wrong: rubbish, divergence, clients that vanish, networks that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_split_runs import VARIANTS, experiment, tensors
from torch import Tensor

from leanfleet.engines.clients import Clients
from leanfleet.engines.local import resume, run
from leanfleet.engines.split import SplitCenter
from leanfleet.errors import ExperimentError, LeanfleetError, NetworkError
from leanfleet.runs import Run


def poison(monkeypatch: pytest.MonkeyPatch, how: Callable[[Tensor], Tensor], clients: set[int]) -> None:
    """Let what some clients send be rubbish."""
    send = Clients._send
    monkeypatch.setattr(
        Clients, "_send", lambda self, i, a, y: send(self, i, how(a) if i in clients else a, y)
    )


RUBBISH: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda a: a * float("nan"),
    "shape": lambda a: a[:, :, 1:],
    "samples": lambda a: a[:-1],
    "huge": lambda a: a + 3e38,
}


@pytest.mark.parametrize("kind", RUBBISH)
@pytest.mark.parametrize("variant", ["adasplit", "sl-basic", "splitfed-1"])
def test_rubbish_is_left_out_and_counted(
    kind: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, RUBBISH[kind], {1})
    record = run(experiment(*VARIANTS[variant], "method.kappa=0.0" if variant == "adasplit" else "budget.macs=1e15",
                            "experiment.rounds=2"), root=tmp_path, workers=1)  # fmt: skip
    rejected = [why for event in record.events() for why in event["rejected"]]
    assert rejected
    assert all(why.startswith("client 1: ") for why in rejected)
    assert all(event["heard"][1] == 0 for event in record.events())
    assert all(event["heard"][0] > 0 for event in record.events())
    assert all(bool(t.isfinite().all()) for t in tensors(record).values())


@pytest.mark.parametrize("variant", ["adasplit", "sl-basic"])
def test_nothing_but_rubbish_ends_the_run_and_damages_nothing(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = (*VARIANTS[variant], "experiment.rounds=3")
    center: list[SplitCenter] = []
    init = SplitCenter.__init__

    def remembered(self: SplitCenter, *arguments: Any) -> None:
        init(self, *arguments)
        center.append(self)

    monkeypatch.setattr(SplitCenter, "__init__", remembered)
    poison(monkeypatch, RUBBISH["shape"], {0, 1, 2})
    with pytest.raises(
        LeanfleetError, match=r"round \d: nothing that clients sent could be used \(client \d: "
    ):
        run(experiment(*sets), root=tmp_path, workers=1)
    fresh = center[0].method.server()
    found = center[0].server.tensors()
    assert all(torch.equal(t, found[name]) for name, t in fresh.tensors().items())
    assert set(found) == set(fresh.tensors())
    monkeypatch.undo()
    assert resume(tmp_path / "split", workers=1).finished


@pytest.mark.parametrize("variant", ["adasplit", "no-head", "sl-basic", "splitfed-2", "masks-only"])
def test_a_learning_rate_far_too_high_is_an_error_not_a_curve(variant: str, tmp_path: Path) -> None:
    sets = ("training.lr=1e25", "experiment.eval_every=1")
    with pytest.raises(LeanfleetError, match=r"training has diverged[:;] lower \[training\] lr") as caught:
        run(experiment(*VARIANTS[variant], *sets), root=tmp_path, workers=1)
    assert len(str(caught.value).splitlines()) == 1


DYING = "device,seconds,rate\na,0,1.0\nb,0,1.0\nb,{at},0.0\nc,0,1.0\n"


@pytest.mark.parametrize("variant", ["adasplit", "handover", "sl-basic", "splitfed-1"])
def test_a_client_that_vanishes(variant: str, tmp_path: Path, references: Callable[[str], Run]) -> None:
    times = [event["seconds_virtual"] for event in references(variant).events()]
    (tmp_path / "trace.csv").write_text(DYING.format(at=times[2] + 0.01))
    sets = (*VARIANTS[variant], "fleet.availability=trace", f"fleet.trace={tmp_path / 'trace.csv'}")
    with pytest.raises(
        ExperimentError, match=r"device 1 is never done: its trace ends at rate 0.*iteration_seconds"
    ):
        run(experiment(*sets), root=tmp_path / "waits", workers=1)
    limit = "fleet.iteration_seconds=120.0"
    record = run(experiment(*sets, limit), root=tmp_path / "goes-on", workers=1)
    before, last = record.events()[2:]
    assert before["stragglers"] == 0
    assert 2 <= last["stragglers"] <= 3
    assert last["heard"][1] <= 1
    assert last["seconds_virtual"] >= before["seconds_virtual"] + 2 * 120.0
    assert (record.summary() or {})["accuracy"] > 0


def test_networks_that_do_not_fit_are_refused_before_there_is_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_split.py").write_text(
        "from leanfleet.nets import build\nfrom torch import nn\n"
        "def coloured():\n    return build('lenet')\n"
        "def narrow():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    for sets, words in {
        ("network.name=lenet", "method.cut=1"): "images of 1x8x8 do not fit; it is made for 3x32x32",
        ("network.name=mine_split:coloured", "method.cut=1"): r"the network does not take \(1, 8, 8\)",
        ("network.name=mine_split:narrow", "method.cut=3"): "gives 3 outputs; 10 classes need as many",
        ("method.cut=15",): "cut 15: leaves one half empty",
        ("method.cut=0",): "cut 0: leaves one half empty",
        ("network.name=resnet-20", "method.cut=stage1_1_conv1"): "skip connection",
    }.items():
        with pytest.raises(NetworkError, match=words):
            run(experiment(*sets), root=tmp_path / "runs", workers=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("limit", "value"), [("seconds", 1.0), ("macs", 1.0), ("bytes", 1.0)])
def test_a_budget_ends_the_run(limit: str, value: float, tmp_path: Path) -> None:
    summary = run(experiment(f"budget.{limit}={value}"), root=tmp_path, workers=1).summary()
    assert summary is not None
    assert summary["ended_by"] == limit
    # Nothing is sent before the third round.
    assert summary["rounds"] == (3 if limit == "bytes" else 1)
    assert summary["accuracy"] is not None


@pytest.mark.parametrize("variant", ["handover", "sl-handover"])
def test_a_half_that_is_handed_on_passes_by_who_is_too_slow(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trace.csv").write_text("device,seconds,rate\na,0,1.0\nb,0,0.0\nc,0,1.0\n")
    seen: list[tuple[int, Tensor, Tensor]] = []
    train = Clients._train

    def watched(self: Clients, i: int, round: int, iteration: int, *, sends: bool) -> Any:
        before = next(iter(self._client(i).own().values())).clone()
        found = train(self, i, round, iteration, sends=sends)
        seen.append((i, before, next(iter(self._client(i).own().values())).clone()))
        return found

    monkeypatch.setattr(Clients, "_train", watched)
    trace = (
        "fleet.availability=trace",
        f"fleet.trace={tmp_path / 'trace.csv'}",
        "fleet.iteration_seconds=120.0",
    )
    sets = (*VARIANTS[variant], *trace, "experiment.rounds=1", "experiment.eval_every=1")
    kappa = () if variant.startswith("sl") else ("method.kappa=0.0", "method.server_grad=false")
    record = run(experiment(*sets, *kappa), root=tmp_path, workers=1)
    assert {i for i, _, _ in seen} == {0, 2}
    if variant == "handover":
        for (_, _, after), (i, before, _) in pairwise(seen):
            assert torch.equal(after, before), f"client {i} goes on where the one before it was"
    assert record.events()[-1]["bytes_down"] > 0
