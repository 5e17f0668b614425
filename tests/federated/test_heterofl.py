from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fleet_of_batches import CLASSES, batches, method, play, take_part
from torch import nn

from leanfleet.errors import NetworkError, WireError
from leanfleet.federated import METHODS, Optimiser, Report, Setting
from leanfleet.federated.heterofl import masked_loss
from leanfleet.federated.levels import prefix
from leanfleet.nets import NETWORKS, build
from leanfleet.subnet import SubnetPlan

HELD = "levels/held"


@pytest.mark.parametrize(
    ("name", "keep", "shares"),
    [
        ("densenet-bc-40", (), (1, 0.527, 0.252)),
        ("densenet-bc-100", (), (1, 0.525, 0.250)),
        ("femnist-cnn", (), (1, 0.530, 0.279)),
    ],
)
def test_levels_cost_what_the_specification_says(name, keep, shares):
    net = build(name)
    plan = SubnetPlan.trace(net, torch.zeros(2, *NETWORKS[name].shape), keep)
    macs = [plan.macs_of(prefix(plan, 0.7**level)) for level in range(3)]
    assert [m / macs[0] for m in macs] == pytest.approx(shares, abs=5e-4)


def test_a_level_is_a_prefix_of_the_level_before():
    m, _ = method("heterofl")
    for wide, narrow in zip(m.levels, m.levels[1:], strict=False):
        for group in m.plan.groups:
            assert torch.equal(narrow[group.name], wide[group.name][: len(narrow[group.name])])
    assert [len(kept[m.plan.groups[0].name]) for kept in m.levels] == [16, 12, 8]


def test_strict_gives_the_first_level_to_full_means_only():
    m, params = method("heterofl")
    levels = [m.level(take_part(m, params, 0, share=share)[3]) for share in (0.1, 0.3, 0.6, 0.999, 1.0)]
    assert levels == [2, 2, 1, 1, 0]
    assert m.deadline


def test_nearest_may_give_more_than_fits_and_waives_the_deadline():
    m, params = method("heterofl", fit="nearest")
    _, update, pacer, report = take_part(m, params, 0, share=0.9)
    assert m.level(report) == 0
    assert not m.deadline
    assert update is not None
    assert not pacer.late
    assert pacer.finished_at > 1.0


def test_the_network_in_use_is_the_widest_level_that_was_held():
    m, params = method("heterofl")
    assert not params[HELD].any()
    narrow = play(m, params, 0, (0.3, 0.3))
    assert narrow[HELD].tolist() == [0, 0, 1]
    wider = play(m, narrow, 1, (0.3, 0.6))
    assert wider[HELD].tolist() == [0, 1, 1]
    assert play(m, wider, 2, (0.3,))[HELD].tolist() == [0, 1, 1]
    x = torch.randn(9, 2, 6, 6)
    with torch.no_grad():
        for params, level in ((narrow, 2), (wider, 1)):
            own = {n: params[n] for n in m.plan.parameters}
            inner = m.levels[level]
            expected = m.plan.run(m.plan.pack(own, inner), inner, x, scale=False)
            assert torch.allclose(m.logits(m.deployed(params), x), expected, atol=1e-6)


def test_what_no_device_holds_stays_random_and_is_not_used():
    m, params = method("heterofl")
    after = play(m, params, 0, (0.3, 0.6))
    outer = torch.arange(12, 16)
    assert torch.equal(after["0.weight"][outer], params["0.weight"][outer])
    assert not m.deployed(after)["0.weight"][outer].any()


def without_norms(**options):
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip
    plan = SubnetPlan.trace(net, torch.zeros(2, 2, 6, 6))
    cls = METHODS["heterofl"]
    m = cls(Setting(plan, Optimiser(0.1), 1.0), cls.Options(**options))
    return m, m.begin({n: p.detach() for n, p in net.named_parameters()})


def factors(m, params, share):
    assigned, _, _, _ = take_part(m, params, 0, share=share)
    kept, _ = m.opened(assigned)
    return [float(f.max()) for number in range(3) if (f := kept.scale(number)) is not None]


def test_the_scale_is_relative_to_the_widest_level_held():
    m, params = without_norms()
    params = {**params, HELD: torch.tensor([0.0, 1.0, 1.0])}
    assert max(factors(m, params, 0.6)) == 1.0
    assert max(factors(m, params, 0.3)) == pytest.approx(12 / 8)


def test_before_anything_is_held_nothing_is_scaled():
    m, params = without_norms()
    for share in (0.3, 0.6):
        assert set(factors(m, params, share)) == {1.0}


@pytest.mark.parametrize("name", ["densenet-bc-19", "resnet-20"])
def test_a_norm_takes_the_scale_out_again(name):
    net = build(name)
    plan = SubnetPlan.trace(net, torch.zeros(2, 3, 32, 32))
    assert plan.normed == {group.name for group in plan.groups}
    cls = METHODS["heterofl"]
    m = cls(Setting(plan, Optimiser(0.1), 1.0), cls.Options())
    params = m.begin({n: p.detach() for n, p in net.named_parameters()})
    params[HELD] = torch.ones(3)
    kept, sub = m.opened(m.assign(params, Report(10, 1.0), 0, torch.Generator()))
    assert len(kept[plan.groups[0].name]) < plan.groups[0].channels
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(
            plan.run(sub, kept, x, scale=True), plan.run(sub, kept, x, scale=False), atol=1e-5
        )


def test_a_late_or_refused_device_holds_nothing():
    m, params = method("heterofl")
    _, _, pacer, _ = take_part(m, params, 0, share=1.0, true_share=0.3)
    assert pacer.late
    after = m.finish(params, m.empty(params))
    assert not after[HELD].any()


@pytest.mark.parametrize("name", ["heterofl", "fjord"])
def test_norms_over_channels_are_refused_by_name(name):
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    plan = SubnetPlan.trace(net, torch.zeros(2, 2, 6, 6))
    cls = METHODS[name]
    with pytest.raises(NetworkError, match="statistics of '1' span channels"):
        cls(Setting(plan, Optimiser(0.1), 1.0), cls.Options())


def test_many_levels_keep_a_channel_each():
    m, _ = method("heterofl", s=0.1, levels=20)
    assert all(len(ids) >= 1 for kept in m.levels for ids in kept.values())


def test_masked_classes_are_zeros_in_the_loss():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 2, 0, 2, 2])
    zeroed = logits.clone()
    zeroed[:, [1, 3]] = 0
    assert torch.equal(masked_loss(torch.tensor([0, 2]))(logits, labels), F.cross_entropy(zeroed, labels))


def test_rows_of_absent_classes_are_not_averaged():
    m, params = method("heterofl", mask_labels=True)
    work = batches(0)
    assigned, update, _, report = take_part(m, params, 0)
    flags = update.tensors["heterofl/labels"]
    assert flags.tolist() == [int((work.labels == c).any()) for c in range(CLASSES)]
    update.tensors["heterofl/labels"][1] = 0
    total = m.empty(params)
    m.accumulate(total, assigned, update)
    after = m.finish(params, total)
    assert torch.equal(after["7.weight"][1], params["7.weight"][1])
    assert not torch.equal(after["7.weight"][0], params["7.weight"][0])
    update.tensors["heterofl/labels"][1] = 7
    with pytest.raises(WireError, match="labels"):
        m.check(report, update)


def test_grouped_convolutions_get_prefixes_of_every_cell():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 8, 3),
        torch.nn.Conv2d(8, 8, 3, groups=2),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(3),
    )
    net(torch.zeros(1, 2, 6, 6))
    plan = SubnetPlan.trace(net, torch.zeros(2, 2, 6, 6))
    m = METHODS["heterofl"](Setting(plan, Optimiser(0.1), 1.0), METHODS["heterofl"].Options(s=0.5))
    kept = m.choose({}, Report(10, 1.0), 0, torch.Generator())
    assert kept[plan.groups[1].name].tolist() == [0, 4]
