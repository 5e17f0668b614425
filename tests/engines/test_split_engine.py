"""The split family through the engine: its books, hand-overs, selections and evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_split_runs import LOCAL, VARIANTS, experiment, job

from closed_forms import Schedule, client_macs, handover_bytes, server_macs
from leanfleet.engines import clients as clients_module
from leanfleet.engines import split as split_module
from leanfleet.engines.clients import Clients
from leanfleet.engines.local import run
from leanfleet.experiment import load
from leanfleet.runs import Run
from leanfleet.split.orchestrator import Ucb
from leanfleet.wire import Message

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


# -- evaluation ----------------------------------------------------------------------------------------------


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
