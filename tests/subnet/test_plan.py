"""The narrow run against the masked network, on every reference network and many odd ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import Case, check_sliced_is_masked, close, leaves_of, trace
from odd_networks import CASES
from reference_cases import REFERENCES
from torch import Tensor, nn

from leanfleet import nets
from leanfleet.subnet import SubnetPlan

ALL = {**CASES, **REFERENCES}
_BATCH = {"densenet-bc-100": 2}
every_network = pytest.mark.parametrize("name", ALL)


def some_kept(plan: SubnetPlan, seed: int, highest: float = 0.7):
    generator = torch.Generator().manual_seed(seed)
    rates = (torch.rand(len(plan.groups), generator=generator) * highest).tolist()
    return plan.draw(rates, generator, bernoulli=seed % 2 == 1)


@every_network
def test_sliced_is_masked(name: str) -> None:
    case = ALL[name]
    net, plan = trace(case)
    assert {group.name: group.channels for group in plan.groups} == dict(case.groups)
    for seed in range(1 if name in _BATCH else 3):
        check_sliced_is_masked(case, net, plan, some_kept(plan, seed), batch=_BATCH.get(name, 4))


@pytest.mark.parametrize("name", REFERENCES)
def test_float32_agrees_within_1e_5_of_the_largest_output(name: str) -> None:
    net, plan = trace(REFERENCES[name])
    kept = some_kept(plan, 0, highest=0.5)
    leaves = plan.pack(dict(net.named_parameters()), kept)
    x = torch.randn(
        4, *REFERENCES[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    exact = plan.run(leaves, kept, x)
    single = plan.run({key: leaf.float() for key, leaf in leaves.items()}, kept, x.float())
    assert (single.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", ["residual", "concat", "separable", "sequence", "femnist-cnn-small"])
def test_without_scaling_the_mask_is_one(name: str) -> None:
    net, plan = trace(ALL[name])
    check_sliced_is_masked(ALL[name], net, plan, some_kept(plan, 5), scale=False)


@pytest.mark.parametrize("name", CASES)
def test_one_channel_a_cell_is_enough(name: str) -> None:
    case = CASES[name]
    net, plan = trace(case)
    generator = torch.Generator().manual_seed(0)
    check_sliced_is_masked(case, net, plan, plan.draw_counts([g.cells for g in plan.groups], generator))


@every_network
def test_rate_0_is_the_plain_network_bit_for_bit(name: str) -> None:
    net, plan = trace(ALL[name])
    params, kept = dict(net.named_parameters()), plan.draw(plan.uniform(0.0), torch.Generator())
    x = torch.randn(2, *ALL[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaves = leaves_of(plan, net, kept)
    assert all(leaves[key].data_ptr() == params[key].data_ptr() for key in params)
    assert torch.equal(plan.run(leaves, kept, x), net.train()(x))


@pytest.mark.parametrize("name", ["residual", "densenet-bc-19"])
def test_channels_last_changes_the_memory_only(name: str) -> None:
    net, plan = trace(ALL[name])
    kept = some_kept(plan, 0)
    x = torch.randn(4, *ALL[name].shape, dtype=torch.float64)
    expected = plan.run(plan.pack(dict(net.named_parameters()), kept), kept, x)
    net.to(memory_format=torch.channels_last)
    leaves = plan.pack(dict(net.named_parameters()), kept)
    close(plan.run(leaves, kept, x.contiguous(memory_format=torch.channels_last)), expected)


class RandomConcats(nn.Module):
    """Every layer reads any earlier values, in any order, some of them twice."""

    def __init__(self, layers: list[tuple[int, list[int]]]) -> None:
        super().__init__()
        self.sources, widths = [sources for _, sources in layers], [2]
        self.convs = nn.ModuleList()
        for filters, sources in layers:
            self.convs.append(nn.Conv2d(sum(widths[s] for s in sources), filters, 1, bias=False))
            widths.append(filters)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for i, conv in enumerate(self.convs):
            read = torch.cat([values[s] for s in self.sources[i]], dim=1)
            values.append(torch.tanh(conv(read)))
        return values[-1]


@st.composite
def layer_lists(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    count = draw(st.integers(2, 5))
    sources = [draw(st.lists(st.integers(0, i), min_size=1, max_size=4)) for i in range(count)]
    return [(draw(st.integers(2, 9)), own) for own in sources]


@given(layer_lists(), st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_a_weight_column_is_used_exactly_when_its_source_is_kept(layers, seed: int) -> None:
    net = RandomConcats(layers).double()
    plan = SubnetPlan.trace(net, torch.zeros(1, 2, 2, 2, dtype=torch.float64))
    assert plan.groups[-1:] == () or plan.groups[-1].name != f"convs.{len(layers) - 1}"
    kept = some_kept(plan, seed)
    places = plan.positions(kept)
    widths = [2, *(filters for filters, _ in layers)]
    for i, (_, sources) in enumerate(layers):
        expected, offset = set(), 0
        for source in sources:
            own = kept.get(f"convs.{source - 1}", torch.arange(widths[source]))
            expected |= {offset + channel for channel in own.tolist()}
            offset += widths[source]
        place = places[f"convs.{i}.weight"]
        columns = place[1].tolist() if len(place) > 1 and place[1] is not None else list(range(offset))
        assert len(columns) == len(expected)
        assert set(columns) == expected

    def reads(f) -> dict[str, Tensor]:
        values = [torch.ones(2)]
        found = {}
        for i, (filters, sources) in enumerate(layers):
            found[f"convs.{i}"] = torch.cat([values[s] for s in sources])
            values.append(f(f"convs.{i}") if f"convs.{i}" in kept else torch.ones(filters))
        return found

    check_sliced_is_masked(Case(nn.Identity, (2, 2, 2), {}, reads), net, plan, kept)


class LinearConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(3, 6, bias=False)
        self.c, self.d = nn.Linear(10, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(torch.cat([self.a(x), self.b(x)], 1)))


def test_the_mean_over_all_kept_sets_is_the_whole_network() -> None:
    """Without norm and nonlinearity inverted scaling is unbiased, whatever the rates of a concat's parts."""
    net = LinearConcat().double()
    plan = SubnetPlan.trace(net, torch.zeros(1, 3, dtype=torch.float64))
    params, x = dict(net.named_parameters()), torch.randn(1, 3, dtype=torch.float64)
    choices = [
        itertools.combinations(range(g.channels), n) for g, n in zip(plan.groups, (1, 4, 3), strict=True)
    ]
    outs = []
    with torch.no_grad():
        for sets in itertools.product(*map(list, choices)):
            kept = plan.keep({g.name: torch.tensor(s) for g, s in zip(plan.groups, sets, strict=True)})
            outs.append(plan.run(plan.pack(params, kept), kept, x))
        assert len(outs) == 4 * 15 * 4
        close(torch.stack(outs).mean(0), net(x))


def test_the_mean_over_20000_draws_is_the_whole_network() -> None:
    net = nn.Sequential(nn.Linear(3, 12), nn.Linear(12, 2)).double()
    plan = SubnetPlan.trace(net, torch.zeros(1, 3, dtype=torch.float64))
    params, x = dict(net.named_parameters()), torch.randn(1, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    outs = torch.empty(20_000, 2, dtype=torch.float64)
    with torch.no_grad():
        for out in outs:
            kept = plan.draw((0.4,), generator)
            out.copy_(plan.run(plan.pack(params, kept), kept, x)[0])
        error = (outs.mean(0) - net(x)[0]).abs() / (outs.std(0) / math.sqrt(len(outs)))
    assert bool((error < 4).all())


@pytest.mark.parametrize("name", ["residual", "affine", "digits-cnn-small"])
def test_evaluation_does_not_know_of_dropout(name: str) -> None:
    net, plan = trace(ALL[name])
    x = torch.randn(4, *ALL[name].shape, dtype=torch.float64)
    params = dict(net.named_parameters())
    before = plan.run(params, plan.full, x, training=False)
    plan.run(plan.pack(params, some_kept(plan, 0)), some_kept(plan, 0), x)
    assert torch.equal(plan.run(params, plan.full, x, training=False), before)
    assert torch.equal(before, net.train()(x))


def test_running_statistics_stay_untouched() -> None:
    net = nets.build("digits-cnn-small")
    plan = SubnetPlan.trace(net, torch.zeros(1, 1, 8, 8))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    kept = some_kept(plan, 0)
    leaves = leaves_of(plan, net, kept)
    plan.run(leaves, kept, torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert net.training


def test_the_plan_is_a_copy() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    plan = SubnetPlan.trace(net, torch.zeros(1, 1, 2, 2))
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    x = torch.randn(2, 1, 2, 2)
    expected = net(x)
    net[1] = nn.Sigmoid()
    nn.init.zeros_(net[0].weight)
    assert torch.equal(plan.run(params, plan.full, x), expected)


def test_dropout_of_the_network_s_own_is_on_while_training_only() -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2)).eval()
    plan = SubnetPlan.trace(net, torch.zeros(1, 4))
    params, x = dict(net.named_parameters()), torch.randn(3, 4)
    assert torch.equal(plan.run(params, plan.full, x, training=False), net(x))
    assert not torch.equal(plan.run(params, plan.full, x), net(x))


def test_attention_follows_the_training_flag_too() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x)[0]

    net = Attending()
    plan = SubnetPlan.trace(net, torch.zeros(1, 3, 8))
    params, x = dict(net.named_parameters()), torch.randn(2, 3, 8)
    torch.testing.assert_close(plan.run(params, plan.full, x, training=False), net.eval()(x))
    assert not torch.allclose(plan.run(params, plan.full, x), net(x))


@pytest.mark.parametrize(
    ("rates", "message"),
    [((0.5,), "1 rates for 2"), ((0.5, 1.0), r"\[0, 1\), not \[1.0\]"), ((-0.1, 0.0), r"not \[-0.1\]"),
     ((math.nan, 0.0), "nan")],
)  # fmt: skip
def test_rates_are_checked(rates: tuple[float, ...], message: str) -> None:
    plan = SubnetPlan.trace(CASES["mlp"].build(), torch.zeros(1, 12))
    for use in (plan.macs, lambda r: plan.draw(r, torch.Generator())):
        with pytest.raises(ValueError, match=message):
            use(rates)


def test_kept_sets_are_checked() -> None:
    _, plan = trace(CASES["grouped-shuffle"])
    whole = dict(plan.full)
    assert plan.keep(whole).full
    for bad, message in [
        ({"stem": torch.arange(16)}, "the groups are"),
        (whole | {"stem": torch.tensor([], dtype=torch.long)}, "'stem' is empty"),
        (whole | {"third": torch.tensor([1, 0])}, "'third' is empty, not ascending"),
        (whole | {"third": torch.tensor([0, 8])}, r"not in 0\.\.7"),
        (whole | {"stem": torch.tensor([0, 1, 2, 4, 8])}, "does not fill its 4 cells equally"),
    ]:
        with pytest.raises(ValueError, match=message):
            plan.keep(bad)


def test_another_input_shape_is_refused() -> None:
    _, plan = trace(CASES["sequence"])
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 14\), not \(2, 16\)"):
        plan.run({}, plan.full, torch.zeros(1, 2, 16))


def test_fingerprint_is_of_the_structure_without_the_classes() -> None:
    def fingerprint(name: str, keep: tuple[str, ...] = (), **options) -> str:
        net = nets.build(name, **options)
        return SubnetPlan.trace(net, torch.zeros(1, *nets.NETWORKS[name].shape), keep).fingerprint

    own = fingerprint("digits-cnn", classes=10)
    assert own == fingerprint("digits-cnn", classes=10, seed=1) == fingerprint("digits-cnn", classes=47)
    others = [fingerprint("digits-cnn-small"), fingerprint("digits-cnn", keep=("hidden",))]
    assert len({own, *others}) == 3
    plan = SubnetPlan.trace(nets.build("resnet-20"), torch.zeros(1, 3, 16, 16))
    assert plan.fingerprint != SubnetPlan.trace(nets.build("resnet-20"), torch.zeros(1, 3, 8, 8)).fingerprint
