from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fleet_of_batches import batches, method, net, rate, take_part

from leanfleet.federated import Optimiser
from leanfleet.fleet import Pacer, VirtualClock
from leanfleet.randomness import torch_generator
from leanfleet.wire import Message


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_a_device_minimises_the_proximal_loss(mu):
    optimiser = Optimiser(0.1, momentum=0.9, weight_decay=1e-3)
    m, params = method("fedprox", optimiser, mu=mu)
    _, update, _, _ = take_part(m, params, 0)
    plain = net()
    sgd = torch.optim.SGD(plain.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for x, y in batches(0):
        sgd.zero_grad()
        far = sum(((p - params[n]) ** 2).sum() for n, p in plain.named_parameters())
        (F.cross_entropy(plain(x), y) + mu / 2 * far).backward()
        sgd.step()
    for n, p in plain.named_parameters():
        assert torch.allclose(update.tensors[n], (p - params[n]).detach(), atol=1e-6)


@pytest.mark.parametrize(("share", "samples"), [(0.3, 0), (0.5, 8), (0.8, 16), (1.0, 21)])
def test_a_device_does_the_mini_batches_that_fit(share, samples):
    m, params = method("fedprox", mu=0.0)
    _, update, pacer, _ = take_part(m, params, 0, share=share)
    assert (0 if update is None else update.scalars["weight"]) == samples
    assert pacer.late == (samples < 21)
    assert pacer.macs <= pacer.available_macs * (1 + 1e-9)


def test_a_step_that_does_not_fit_now_is_begun_all_the_same():
    class Rising:
        def rate(self, t):
            return slow if t < 0.5 else 10 * slow

        def next_change(self, t):
            return 0.5 if t < 0.5 else float("inf")

    m, params = method("fedprox")
    slow = rate(m, 21, 0.1)
    pacer = Pacer(VirtualClock(Rising()), round_start=0.0, round_seconds=1.0, samples=21)
    update = m.train(Message(params, {"lr": 0.1}), batches(0), pacer, torch_generator(0))
    assert update.scalars["weight"] == 8


def test_distreal_takes_a_proximal_term_too():
    near, params = method("distreal", mu=5.0)
    far, _ = method("distreal")
    moved = [
        sum(float(d.norm() ** 2) for d in take_part(m, params, 0, share=0.5)[1].tensors.values())
        for m in (near, far)
    ]
    assert moved[0] < moved[1]
