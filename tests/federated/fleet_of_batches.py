"""A tiny federated world without data, engine or disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanfleet.federated import METHODS, Method, Optimiser, Report, Setting
from leanfleet.fleet import Constant, Pacer, VirtualClock
from leanfleet.ledger import PHI
from leanfleet.nets import VotingEnsemble
from leanfleet.randomness import torch_generator
from leanfleet.subnet import SubnetPlan
from leanfleet.wire import Message, decode, encode

SHAPE = (2, 6, 6)
CLASSES = 3


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def method(
    name: str, optimiser: Optimiser | None = None, **options: Any
) -> tuple[Method[Any, Any], dict[str, Tensor]]:
    network = net()
    plan = SubnetPlan.trace(network, torch.zeros(1, *SHAPE))
    cls = METHODS[name]
    chosen = cls.Options(**options)
    # The experiment's network is three times as dear as this one, for methods that train several.
    members = cls.members(3.0, 1.0, chosen)
    wrapped = VotingEnsemble([net(seed) for seed in range(members)]) if members > 1 else network
    optimiser = optimiser or Optimiser(0.1, momentum=0.9, weight_decay=1e-3)
    m = cls(Setting(plan, optimiser, 1.0, members), chosen)
    return m, m.begin({n: p.detach().clone() for n, p in wrapped.named_parameters()})


class Work(list[tuple[Tensor, Tensor]]):
    @property
    def labels(self) -> Tensor:
        return torch.cat([y for _, y in self])


def batches(device: int, sizes: tuple[int, ...] = (8, 8, 5)) -> Work:
    g = torch_generator(device, "data")
    images = [torch.randn(n, *SHAPE, generator=g) for n in sizes]
    # The class is where the brightest row of the image is: something a network can learn.
    return Work((x, x.mean((1, 3)).unflatten(1, (CLASSES, -1)).mean(2).argmax(1)) for x in images)


def rate(m: Method[Any, Any], samples: int, share: float) -> float:
    """Return the MAC/s at which `share` of the whole network's work fits the round."""
    return share * PHI * m.plan.macs_of(m.plan.full) * samples / m.setting.round_seconds


def take_part(
    m: Method[Any, Any],
    params: dict[str, Tensor],
    device: int,
    round: int = 0,
    share: float = 1.0,
    true_share: float | None = None,
) -> tuple[Message, Message | None, Pacer, Report]:
    """Let one device take part, every message through the wire; `true_share` is what it really has."""
    if m.resources == "full":
        share = 1.0
    work = batches(device)
    samples = sum(len(y) for _, y in work)
    report = Report(samples, rate(m, samples, share), turn=4 * round + device)
    assigned = m.assign(params, report, round, torch_generator(0, round, device, "assign"))
    clock = VirtualClock(Constant(rate(m, samples, share if true_share is None else true_share)))
    pacer = Pacer(clock, round_start=0.0, round_seconds=1.0, samples=samples, margin=0.0, deadline=m.deadline)
    sent = decode(encode(assigned))
    update = m.train(sent, work, pacer, torch_generator(0, round, device, "masks"))
    if update is not None:
        update = decode(encode(update), *m.expects(assigned))
        m.check(report, update)
    return assigned, update, pacer, report


def play(
    m: Method[Any, Any], params: dict[str, Tensor], round: int, shares: tuple[float, ...]
) -> dict[str, Tensor]:
    total = m.empty(params)
    for device, share in enumerate(shares):
        assigned, update, _, _ = take_part(m, params, device, round, share)
        if update is not None:
            m.accumulate(total, assigned, update)
    return m.finish(params, total)
