"""The split family through the engine: its books, workers, resuming, and what it does with what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from closed_forms import Schedule, client_macs, handover_bytes, server_macs
from leanfleet.data import DataSet
from leanfleet.data import load as load_data
from leanfleet.engines import clients as clients_module
from leanfleet.engines import split as split_module
from leanfleet.engines.clients import Clients
from leanfleet.engines.clients import test_samples as samples_like
from leanfleet.engines.job import SplitJob, make_job
from leanfleet.engines.local import Progress, resume, run
from leanfleet.engines.split import SplitCenter
from leanfleet.engines.staff import Staff
from leanfleet.errors import ExperimentError, LeanfleetError, NetworkError
from leanfleet.experiment import Experiment, load, loads
from leanfleet.runs import Run
from leanfleet.split.orchestrator import Ucb
from leanfleet.wire import Message

TOML = """
[experiment]
name = "split"
rounds = 4
eval_every = 4
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
kappa = 0.5
"""
LOCAL = 2  # rounds of it in which nothing is sent

VARIANTS = {
    "adasplit": (),
    "listening": ("method.server_grad=true", "method.values=bf16"),
    "masks-only": ("method.kappa=0.0", "method.eta=1.0", "method.local_loss=false"),
    "no-masks": ("method.masks=none", "method.selection=random"),
    "no-head": ("method.head=false", "method.masks=channel", "method.selection=round_robin"),
    "handover": ("method.client_nets=handover", "method.mask_scope=active"),
    "sl-basic": ("method.name=sl-basic",),
    "sl-handover": ("method.name=sl-basic", "method.client_nets=handover"),
    "splitfed-1": ("method.name=splitfed", "method.version=1"),
    "splitfed-2": ("method.name=splitfed", "method.version=2", "method.values=int8"),
}
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


def experiment(*overrides: str) -> Experiment:
    return loads(TOML, overrides)


def job(*overrides: str) -> SplitJob:
    made = make_job(experiment(*overrides))
    assert isinstance(made, SplitJob)
    return made


def tensors(record: Run) -> dict[str, Tensor]:
    latest = record.latest()
    assert latest is not None
    return latest.tensors


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


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    done: dict[str, Run] = {}

    def get(variant: str) -> Run:
        if variant not in done:
            folder = tmp_path_factory.mktemp(variant)
            done[variant] = run(experiment(*VARIANTS[variant]), root=folder, workers=1)
        return done[variant]

    return get


# -- books ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_counted_is_what_the_formulas_say(variant: str, references: Callable[[str], Run]) -> None:
    method, summary = job(*VARIANTS[variant]).method, references(variant).summary()
    assert summary is not None
    ada = method.name == "adasplit"
    kappa, eta = (method.options.kappa, method.options.eta) if ada else (0.0, 1.0)
    schedule = Schedule(3, 4, 3, kappa, eta, batch_size=8)
    cut, head = method.setting.cut, method.client().head_macs
    assert summary["forward_macs"] == client_macs(schedule, cut.client_macs, head)
    assert summary["server_forward_macs"] == server_macs(schedule, cut.server_macs)
    assert summary["server_macs"] == 3 * summary["server_forward_macs"]
    frozen = variant == "masks-only"
    assert summary["macs_total"] == (1 if frozen else 3) * summary["forward_macs"]
    assert summary["stragglers"] == 0
    assert 0 < summary["accuracy"] <= 1
    dense = 4 * cut.values * schedule.samples_sent
    assert (summary["bytes_down"] > 0) == (method.listens or method.handover or method.averages)
    assert summary["bytes_authors"] <= (2 if method.listens else 1) * dense


def test_nothing_is_sent_and_nobody_is_chosen_in_the_local_phase(references: Callable[[str], Run]) -> None:
    events = references("adasplit").events()
    assert [event["bytes_up"] for event in events[:LOCAL]] == [0] * LOCAL
    assert all("heard" not in event and event["server_macs"] == 0 for event in events[:LOCAL])
    assert [sum(event["heard"]) for event in events[LOCAL:]] == [6, 6]  # two of three, three times
    other = run_of(references, "adasplit", "method.selection=all")
    for mine, its in zip(events[:LOCAL], other.events()[:LOCAL], strict=True):
        assert mine["local_loss"] == its["local_loss"]


def run_of(references: Callable[[str], Run], variant: str, *overrides: str) -> Run:
    folder = references(variant).folder.parent
    return run(experiment(*VARIANTS[variant], *overrides), root=folder, workers=1)


@pytest.mark.parametrize("variant", ["adasplit", "listening", "sl-basic", "splitfed-2"])
def test_bytes_are_the_lengths_of_what_is_encoded(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {"up": 0, "down": 0, "authors": 0}
    send, reply = clients_module.send_activation, split_module.send_gradient

    def up(*arguments: Any) -> Any:
        sent = send(*arguments)
        lengths["up"] += len(sent.data)
        lengths["authors"] += sent.authors_bytes * (2 if made.method.listens else 1)
        return sent

    def down(*arguments: Any) -> bytes:
        data = reply(*arguments)
        lengths["down"] += len(data)
        return data

    made = job(*VARIANTS[variant])
    monkeypatch.setattr(clients_module, "send_activation", up)
    monkeypatch.setattr(split_module, "send_gradient", down)
    summary = run(experiment(*VARIANTS[variant]), root=tmp_path, workers=1).summary()
    assert summary is not None
    averaged = 0
    if made.method.averages:
        averaged = 4 * 3 * len(Clients(made)._net(0))
    assert (summary["bytes_up"], summary["bytes_down"]) == (
        lengths["up"] + averaged,
        lengths["down"] + averaged,
    )
    assert summary["bytes_authors"] == lengths["authors"]


# -- repeatable, whatever happens ----------------------------------------------------------------------------


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


# -- hand-over (check list 10) -------------------------------------------------------------------------------


def test_a_hand_over_passes_on_the_half_and_no_moments() -> None:
    made = job(*VARIANTS["handover"])
    clients = Clients(made)

    def step(i: int) -> Message:
        asked = {"task": "step", "clients": f"[{i}]", "round": 0, "iteration": 0, "sends": "[]"}
        return clients.handle(Message({}, asked), lambda: None)

    for i in range(3):
        answer = step(i)
        nxt = (i + 1) % 3
        own, its = clients._client(i).own(), clients._client(nxt).own()
        assert all(torch.equal(t, its[name]) for name, t in own.items())
        assert {name.partition(".")[0] for name in own} == {"net", "head"}
        count = sum(t.numel() for t in own.values())
        # Norms count batches in whole numbers of eight bytes; names are the rest.
        assert 4 * count < answer.scalars["handed"] < 4 * count + 2500  # type: ignore[operator]
    moments = [{n: t for n, t in clients._client(i).tensors().items() if "adam" in n} for i in range(3)]
    assert not all(torch.equal(t, moments[1][name]) for name, t in moments[0].items())


def test_every_hand_over_is_charged_and_takes_time(references: Callable[[str], Run]) -> None:
    record = references("handover")
    made, summary = job(*VARIANTS["handover"]), record.summary()
    assert summary is not None
    own = made.method.client().own()
    formula = handover_bytes(Schedule(3, 4, 3), sum(t.numel() for t in own.values()))
    # Through the server: up and down. What else goes up is activations; nothing else comes down.
    assert formula < summary["bytes_down"] < formula + 2500 * 3 * 4 * 3
    up_local = record.events()[LOCAL - 1]["bytes_up"]
    assert up_local == record.events()[LOCAL - 1]["bytes_down"] == summary["bytes_down"] // 2
    fleet = made.fleet
    each = summary["bytes_down"] / 36
    relays = 36 * (
        2 * fleet.latency_seconds + each / fleet.uplink_bytes_per_s + each / fleet.downlink_bytes_per_s
    )
    steps = summary["macs_total"] / made.best_rate  # one client at a time
    assert summary["seconds_virtual"] > relays + steps
    assert record.events()[LOCAL - 1]["seconds_virtual"] == pytest.approx((relays + steps) / 2)


# -- selection -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "calls"), [(1, 9), (2, 5), (5, 2), (100, 1)])
def test_a_selection_holds_for_its_window_across_rounds(
    window: int, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ends = [0], [0]
    select, end = Ucb.select, Ucb.end_iteration

    def counted(self: Ucb, k: int, generator: torch.Generator) -> list[int]:
        made[0] += 1
        assert k == 2
        return select(self, k, generator)

    def ended(self: Ucb) -> None:
        ends[0] += 1
        end(self)

    monkeypatch.setattr(Ucb, "select", counted)
    monkeypatch.setattr(Ucb, "end_iteration", ended)
    sets = ("method.kappa=0.25", f"method.selection_window={window}")
    run(experiment(*sets), root=tmp_path, workers=1)
    assert made == [calls]
    assert ends == [9]


# -- what goes wrong -----------------------------------------------------------------------------------------


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


# -- evaluation ----------------------------------------------------------------------------------------------


def test_test_samples_weigh_as_a_client_s_classes_do() -> None:
    made = job()
    for client in range(3):
        rows, weights = samples_like(made, client)
        own = torch.bincount(made.data.train.labels[made.parts[client]], minlength=10).double()
        found = torch.zeros(10, dtype=torch.float64).index_add_(0, made.data.test.labels[rows], weights[rows])
        torch.testing.assert_close(found, own / own.sum())
        assert weights.sum() == pytest.approx(1)


def test_a_run_that_learns_is_far_above_chance_at_fewer_bytes(tmp_path: Path) -> None:
    """Five clients with two digits each (check list 12)."""
    common = ("fleet.devices=5", "data.partition=classes(2)", "training.iterations=10", "training.batch_size=16",
              "experiment.eval_every=4", "training.lr=5e-3")  # fmt: skip
    found = {
        name: run(experiment(f"method.name={name}", *common), root=tmp_path, workers=1).summary()
        for name in ("adasplit", "sl-basic")
    }
    ours, basic = found["adasplit"], found["sl-basic"]
    assert ours is not None
    assert basic is not None
    # By chance one of ten; one of two, if only the client's own digits came into question.
    assert ours["accuracy"] > 0.75
    assert ours["bytes_up"] < 0.35 * basic["bytes_up"]
    assert ours["bytes_down"] == 0 < basic["bytes_down"]


def test_the_example_runs(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "adasplit-digits.toml"
    sets = ("experiment.rounds=2", "training.iterations=4")
    summary = run(load(example, sets), root=tmp_path, workers=1).summary()
    assert summary is not None
    assert summary["method"] == "adasplit"
    assert 0 < summary["bytes_up"] < 4 * 1024 * 32 * 3 * 4
