from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fleet_of_batches import batches, method, net, play, rate, take_part
from torch import nn

from leanfleet.errors import LutError, WireError
from leanfleet.federated import METHODS, Optimiser, Setting
from leanfleet.fleet import Pacer, VirtualClock
from leanfleet.ledger import PHI
from leanfleet.randomness import torch_generator
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut
from leanfleet.wire import Message


def plain_fedavg(rounds, devices, optimiser):
    """FedAvg as its paper has it: plain modules, torch.optim, one float64 mean over samples."""
    server = net()
    for _ in range(rounds):
        total, weight = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in server.named_parameters()}, 0
        for device in range(devices):
            local = net()
            local.load_state_dict(server.state_dict())
            local.train()
            sgd = torch.optim.SGD(
                local.parameters(), optimiser.lr, optimiser.momentum, weight_decay=optimiser.weight_decay
            )
            for x, y in batches(device):
                sgd.zero_grad()
                F.cross_entropy(local(x), y).backward()
                sgd.step()
            samples = sum(len(y) for _, y in batches(device))
            for (n, p), q in zip(local.named_parameters(), server.parameters(), strict=True):
                total[n] += samples * (p - q).detach().double()
            weight += samples
        with torch.no_grad():
            for n, p in server.named_parameters():
                p += (total[n] / weight).float()
    return dict(server.named_parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [("distreal", {}), ("distreal", {"average": "coverage"}), ("fedavg", {}), ("fedprox", {"mu": 0.0})],
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_at_full_resources_it_is_fedavg(name, options, momentum):
    optimiser = Optimiser(0.1, momentum, 1e-3)
    m, params = method(name, optimiser, **options)
    for round in range(3):
        params = play(m, params, round, (1.0,) * 4)
    plain = plain_fedavg(3, 4, optimiser)
    assert max(float((params[n] - plain[n].detach()).abs().max()) for n in params) <= 1e-6


@pytest.fixture
def two_rows(tmp_path):
    """A table whose rows keep grid counts, so that nothing is rounded at random."""
    m, _ = method("distreal")
    path = tmp_path / "two.lut"
    Lut.of(m.plan, [m.plan.uniform(0.0), m.plan.uniform(0.5)], "by hand").save(path)
    return path


def test_equal_resources_weigh_by_samples(two_rows):
    m, params = method("distreal", lut=two_rows)
    weights = [take_part(m, params, device, share=0.5)[1].scalars["weight"] for device in range(3)]
    assert len(set(weights)) == 1


def test_the_weight_is_the_macs_of_the_chosen_vectors_over_samples(two_rows):
    m, params = method("distreal", lut=two_rows)
    _, update, pacer, _ = take_part(m, params, 0, share=0.7)
    assert update.scalars["weight"] == pytest.approx(pacer.macs / PHI)
    by_batch, params = method("distreal", weight="batches")
    _, update, _, _ = take_part(by_batch, params, 0, share=1.0)
    assert update.scalars["weight"] == pytest.approx(3 * m.lut.rows[-1].macs)


def test_more_means_never_buy_a_cheaper_vector():
    m, params = method("distreal")
    spent = [take_part(m, params, 0, share=share)[2].macs for share in (0.3, 0.5, 0.7, 0.9, 1.0)]
    assert spent == sorted(spent)


class Halving:
    """A device whose means halve in the middle of the round."""

    def __init__(self, rate, at=0.5):
        self._rate, self._at = rate, at

    def rate(self, t):
        return self._rate if t < self._at else self._rate / 3

    def next_change(self, t):
        return self._at if t < self._at else float("inf")


def test_it_reacts_in_the_middle_of_a_round():
    m, params = method("distreal")
    work = batches(0, sizes=(8,) * 12)
    chosen = []
    draw = m.plan.draw
    m.plan.draw = lambda rates, **kwargs: chosen.append(rates[0]) or draw(rates, **kwargs)
    pacer = Pacer(
        VirtualClock(Halving(rate(m, 96, 0.9))), round_start=0.0, round_seconds=1.0, samples=96, margin=0.15
    )
    m.train(Message(params, {"lr": 0.1}), work, pacer, torch_generator(0))
    assert len(chosen) == 12
    assert not pacer.late
    assert chosen[0] < 0.2
    assert chosen[-1] > 0.4


def test_bernoulli_drops_filter_by_filter():
    m, params = method("distreal", drop="bernoulli")
    counts = set()
    draw = m.plan.draw

    def watched(*arguments, **options):
        kept = draw(*arguments, **options)
        counts.update(len(ids) for ids in kept.values())
        return kept

    m.plan.draw = watched
    for device in range(10):
        take_part(m, params, device, share=0.5)
    assert not counts <= set(m.plan.groups[0].grid), "counts off the grid"


def test_frozen_parameters_stay_bit_for_bit():
    network = net()
    network[0].weight.requires_grad_(False)
    plan = SubnetPlan.trace(network, torch.zeros(1, 2, 6, 6))
    params = {n: p.detach().clone() for n, p in network.named_parameters()}
    m = METHODS["distreal"](
        Setting(plan, Optimiser(0.1, 0.9, 1e-3, clip_norm=1.0), 1.0), METHODS["distreal"].Options()
    )
    after = play(m, params, 0, (0.5, 1.0))
    assert torch.equal(after["0.weight"], params["0.weight"])
    assert not torch.equal(after["3.weight"], params["3.weight"])


def test_a_named_table_is_used(two_rows):
    m, params = method("distreal")
    named, _ = method("distreal", lut=two_rows)
    assert len(named.lut.rows) == 2
    assert take_part(named, params, 0, share=0.9)[2].macs < take_part(m, params, 0, share=0.9)[2].macs


def test_without_a_name_the_table_that_comes_with_the_package_is_used(two_rows, monkeypatch):
    plain, _ = method("distreal")
    assert plain.lut.origin == "uniform"
    asked = []
    monkeypatch.setattr(Lut, "shipped", lambda fingerprint: asked.append(fingerprint) or Lut.load(two_rows))
    found, _ = method("distreal")
    assert asked == [found.plan.fingerprint]
    assert len(found.lut.rows) == 2
    uniform, _ = method("distreal", lut="uniform")
    assert uniform.lut == plain.lut


def test_a_table_for_another_network_is_refused(tmp_path):
    other = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    path = tmp_path / "other.lut"
    Lut.uniform(SubnetPlan.trace(other, torch.zeros(1, 1, 6, 6))).save(path)
    with pytest.raises(LutError, match=r"other\.lut was made for another network"):
        method("distreal", lut=path)


class Draws:
    """Notes every kept set that a method draws."""

    def __init__(self, m):
        self.kept, self.rates = [], []
        self._draw, m.plan.draw = m.plan.draw, self

    def __call__(self, rates, **options):
        self.kept.append(self._draw(rates, **options))
        self.rates.append(rates[0])
        return self.kept[-1]


def test_coverage_divides_each_weight_by_the_macs_that_trained_it(two_rows):
    m, params = method("distreal", average="coverage", lut=two_rows)
    total, expected, active = m.empty(params), {}, {}
    for device, share in enumerate((0.3, 0.5, 1.0)):
        draws = Draws(m)
        assigned, update, _, report = take_part(m, params, device, share=share)
        m.plan.draw = draws._draw
        m.check(report, update)
        m.accumulate(total, assigned, update)
        mine = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in params.items()}
        for kept, dropped, (_, y) in zip(draws.kept, draws.rates, batches(device), strict=True):
            macs = next(row.macs for row in m.lut.rows if row.rates[0] == dropped) * len(y)
            whole = {n: torch.zeros_like(a) for n, a in mine.items()}
            ones = {n: torch.ones_like(leaf) for n, leaf in m.plan.pack(whole, kept).items()}
            m.plan.unpack_(whole, ones, kept)
            mine = {n: a + macs * whole[n] for n, a in mine.items()}
        for n in params:
            assert torch.allclose(update.tensors["active/" + n].double(), mine[n], rtol=1e-6)
            expected[n] = expected.get(n, 0) + mine[n] * update.tensors[n].double()
            active[n] = active.get(n, 0) + mine[n]
    after = m.finish(params, total)
    for n, p in params.items():
        mean = torch.where(active[n] > 0, expected[n] / active[n].clamp(min=1), 0)
        assert torch.allclose(after[n].double(), p.double() + mean, atol=1e-6)


def test_claims_of_coverage_are_checked():
    m, params = method("distreal", average="coverage")
    _, update, _, report = take_part(m, params, 0, share=0.5)
    for value in (-1.0, 2 * float(update.scalars["weight"])):
        broken = {**update.tensors, "active/7.bias": torch.full_like(params["7.bias"], value)}
        with pytest.raises(WireError, match=r"active/7\.bias"):
            m.check(report, Message(broken, update.scalars))


def test_cycled_masks_cover_evenly(two_rows):
    even, params = method("distreal", masks="cycled", lut=two_rows)
    drawn = []
    keep = even.plan.keep
    even.plan.keep = lambda sets, *rest: drawn.append(keep(sets, *rest)) or drawn[-1]
    take_part(even, params, 0, share=0.3)
    first = even.plan.groups[0].name
    counts = torch.bincount(torch.cat([kept[first] for kept in drawn]), minlength=16)
    assert len(drawn) == 3
    assert sorted(counts.tolist()) == [1] * 8 + [2] * 8


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_reacting_once_a_round_keeps_the_first_vector(at):
    m, params = method("distreal", react="round")
    work = batches(0, sizes=(8,) * 12)
    draws = Draws(m)
    clock = VirtualClock(Halving(rate(m, 96, 0.9), at))
    pacer = Pacer(clock, round_start=0.0, round_seconds=1.0, samples=96, margin=0.0)
    m.train(Message(params, {"lr": 0.1}), work, pacer, torch_generator(0))
    assert len(set(draws.rates)) == 1
    assert pacer.late
