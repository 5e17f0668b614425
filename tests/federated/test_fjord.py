from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fleet_of_batches import batches, method, play, take_part
from pydantic import ValidationError

from leanfleet.federated import METHODS, Optimiser
from leanfleet.federated.step import Local, Step
from leanfleet.fleet import Constant, Pacer, VirtualClock
from leanfleet.ledger import PHI


def test_the_widest_level_that_fits_is_sent():
    m, params = method("fjord")
    shares = (0.01, *(macs / m.macs[0] for macs in m.macs[::-1]))
    levels = [m.level(take_part(m, params, 0, share=share)[3]) for share in shares]
    assert levels == [4, 4, 3, 2, 1, 0]


def test_widths_are_random_but_never_wider_than_affordable():
    m, params = method("fjord")
    seen = set()
    run = m.plan.run
    m.plan.run = lambda leaves, kept, x, **kw: (
        seen.add(len(kept[m.plan.groups[0].name])) or run(leaves, kept, x, **kw)
    )
    for device in range(12):
        take_part(m, params, device, share=m.macs[2] / m.macs[0])
    widths = [len(kept[m.plan.groups[0].name]) for kept in m.levels]
    assert seen == set(widths[2:])


def test_only_what_was_sent_changes_and_counts_by_samples():
    m, params = method("fjord")
    assigned, update, _, report = take_part(m, params, 0, share=0.5)
    assert assigned.scalars["vote"] == report.samples
    total = m.empty(params)
    m.accumulate(total, assigned, update)
    after = m.finish(params, total)
    kept, _ = m.opened(assigned)
    width = len(kept[m.plan.groups[0].name])
    assert width < 16
    assert torch.equal(after["0.weight"][width:], params["0.weight"][width:])
    assert torch.allclose(after["0.weight"][:width], update.tensors["0.weight"], atol=1e-7)


def test_self_distillation_descends_on_both_losses_together():
    m, params = method("fjord", Optimiser(0.1, weight_decay=1e-3), distil=True)
    params = {n: params[n] for n in m.plan.parameters}
    x, y = batches(0)[0]
    local = Local(Step(m.plan, m.setting.optimiser, 0.1), params)
    pacer = Pacer(VirtualClock(Constant(1e12)), round_start=0.0, round_seconds=1.0, samples=21)
    assert m._distil(local, 3, 1, (x, y), pacer)
    assert pacer.macs == PHI * (m.macs[1] + m.macs[3]) * len(y)
    # Oracle: one autograd graph over the whole parameters, prefixes as plain slices.
    whole = {n: p.clone().requires_grad_() for n, p in params.items()}

    def narrow(level):
        a, b = (len(ids) for ids in m.levels[level].values())
        columns = torch.arange(64).view(16, 4)[:b].reshape(-1)
        h = F.conv2d(x, whole["0.weight"][:a], whole["0.bias"][:a], padding=1)
        h = F.batch_norm(h, None, None, whole["1.weight"][:a], whole["1.bias"][:a], training=True).relu()
        h = F.conv2d(h, whole["3.weight"][:b, :a], whole["3.bias"][:b], padding=1).relu()
        h = F.adaptive_avg_pool2d(h, 2).flatten(1)
        return F.linear(h, whole["7.weight"][:, columns], whole["7.bias"])

    taught = narrow(1)
    loss = F.cross_entropy(taught, y) + F.cross_entropy(narrow(3), taught.detach().softmax(1))
    loss.backward()
    kept = m.plan.pack({n: torch.ones_like(p) for n, p in params.items()}, m.levels[1])
    trained = {n: torch.zeros_like(p) for n, p in params.items()}
    m.plan.unpack_(trained, kept, m.levels[1])
    for n, p in params.items():
        expected = p - 0.1 * trained[n] * (whole[n].grad + 1e-3 * p)
        assert torch.allclose(local.params[n], expected, atol=1e-6), n


def test_with_self_distillation_a_device_affords_less():
    plain, params = method("fjord")
    taught, _ = method("fjord", distil=True)
    for share in (0.5, 0.8):
        _, _, _, report = take_part(taught, params, 0, share=share)
        assert taught.level(report) > plain.level(report)


def test_the_network_in_use_is_the_widest_that_was_held():
    m, params = method("fjord")
    after = play(m, params, 0, (0.5, 0.6))
    width = len(m.levels[m.widest(after)][m.plan.groups[0].name])
    assert width < 16
    assert torch.equal(after["0.weight"][width:], params["0.weight"][width:])
    assert not m.deployed(after)["0.weight"][width:].any()
    assert m.deployed(after)["0.weight"][:width].any()


def test_widths_differ():
    with pytest.raises(ValidationError, match="differ"):
        METHODS["fjord"].Options(widths=(0.5, 0.5))


@pytest.mark.parametrize("widths", [(1.0, 0.5), (0.5, 1.0)])
def test_widths_may_be_given_in_any_order(widths):
    m, _ = method("fjord", widths=widths)
    assert m.macs == sorted(m.macs, reverse=True)
