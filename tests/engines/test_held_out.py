from __future__ import annotations

from collections.abc import Callable

import torch
from small_split_runs import VARIANTS, job

from leanfleet.engines.center import named
from leanfleet.engines.client_data import accuracy_and_loss, stream
from leanfleet.engines.held_out import held_out_accuracies
from leanfleet.engines.personal import assemble
from leanfleet.runs import Run

CPU = torch.device("cpu")


def test_devices_that_are_held_out_take_no_part(references: Callable[[str], Run]) -> None:
    record, made = references("aux-ce"), job(*VARIANTS["aux-ce"])
    summary, latest = record.summary(), record.latest()
    assert summary is not None
    assert latest is not None
    assert (summary["devices"], made.devices, len(made.parts)) == (3, 3, 4)
    assert [len(event["accuracies"]) for event in record.events() if "accuracies" in event] == [3]
    assert {name.split("/")[1] for name in latest.tensors if name.startswith("clients/")} == {"0", "1", "2"}
    assert made.method.setting.clients == 3


def test_they_show_what_both_fallbacks_are_worth(references: Callable[[str], Run]) -> None:
    record, made = references("aux-ce"), job(*VARIANTS["aux-ce"])
    summary, latest = record.summary(), record.latest()
    assert summary is not None
    assert latest is not None
    server, clients = made.method.server(), named(latest.tensors, "clients/")
    server.restore(named(latest.tensors, "server/"))
    x, y = stream(made, 3, CPU).batch(0)
    nets = [assemble(made, server, clients, i) for i in range(3)]
    with torch.no_grad():
        losses = [float(torch.nn.functional.cross_entropy(net(x), y)) for net in nets]
    nearest = nets[losses.index(min(losses))]
    assert summary["held_out_accuracy_nearest"] == accuracy_and_loss(made, 3, nearest, CPU)[0]
    mean = assemble(made, server, clients, "new")
    assert summary["held_out_accuracy"] == accuracy_and_loss(made, 3, mean, CPU)[0]


def test_without_them_nothing_is_said(references: Callable[[str], Run]) -> None:
    made = job()
    assert held_out_accuracies(made, made.method.server(), {}) == {}
    assert not any(key.startswith("held_out") for key in references("adasplit").summary() or ())
