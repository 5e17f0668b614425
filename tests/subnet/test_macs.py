"""Multiply-accumulates: the specification's tables, torch's own count, and expectations against draws."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import trace
from odd_networks import CASES
from reference_cases import REFERENCES
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanfleet import nets
from leanfleet.subnet import Kept, SubnetPlan

_CACHE: dict[tuple[str, bool], SubnetPlan] = {}


def plan_of(name: str, *, keep: bool = True) -> SubnetPlan:
    """Return the plan of a reference network at its full size."""
    if (name, keep) not in _CACHE:
        reference = nets.NETWORKS[name]
        net = nets.build(name)
        kept = reference.keep if keep else ()
        _CACHE[name, keep] = SubnetPlan.trace(net, torch.zeros(1, *reference.shape), kept)
    return _CACHE[name, keep]


def by_part(plan: SubnetPlan) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for term in plan.terms:
        place, _, layer = term.layer.partition(".")
        # The layers of a block are of two kinds; all others stand for themselves.
        found[f"{place} {layer.rpartition('.')[2]}" if place.startswith("block") else place] += (
            plan.term_macs(term)
        )
    return dict(found)


DENSENETS = {
    "densenet-bc-19": (663_552, 2_949_120, 10_616_832, 1_179_648, 737_280, 2_654_208, 294_912, 184_320, 663_552, 480),
    "densenet-bc-40": (
        663_552, 15_925_248, 31_850_496, 4_718_592, 5_750_784, 7_962_624, 1_843_200, 1_658_880, 1_990_656, 1_320,
    ),
    "densenet-bc-100": (
        663_552, 89_653_248, 84_934_656, 23_887_872, 38_928_384, 21_233_664, 11_520_000, 11_796_480, 5_308_416, 34_200,
    ),
}  # fmt: skip
PARTS = (
    "conv0", "block1 conv1", "block1 conv2", "transition1", "block2 conv1", "block2 conv2", "transition2",
    "block3 conv1", "block3 conv2", "classifier",
)  # fmt: skip
CONVS = {"densenet-bc-19": 19_943_424, "densenet-bc-40": 72_364_032, "densenet-bc-100": 287_926_272}


@pytest.mark.parametrize("name", DENSENETS)
def test_the_densenets_cost_what_the_table_says(name: str) -> None:
    plan = plan_of(name)
    assert by_part(plan) == dict(zip(PARTS, DENSENETS[name], strict=True))
    assert sum(plan.term_macs(t) for t in plan.terms if t.kind == "conv") == CONVS[name]
    assert plan.macs(plan.uniform(0.0)) == plan.macs_of(plan.full) == sum(DENSENETS[name])
    assert len(plan.groups) == {"densenet-bc-19": 15, "densenet-bc-40": 39, "densenet-bc-100": 99}[name]


@pytest.mark.parametrize(
    ("name", "parts"),
    [("femnist-cnn", (460_800, 3_276_800, 262_144, 15_872)),
     ("femnist-cnn-small", (230_400, 819_200, 131_072, 15_872))],
)  # fmt: skip
def test_the_cnns_cost_what_the_table_says(name: str, parts: tuple[int, ...]) -> None:
    plan = plan_of(name)
    assert [plan.term_macs(term) for term in plan.terms] == list(parts)
    assert plan.macs(plan.uniform(0.0)) == sum(parts)
    assert [group.name for group in plan.groups] == ["conv1", "conv2"]


def torch_macs(net_or_run, x: torch.Tensor) -> float:
    """Return MACs per sample as torch counts them: 2 FLOPs each, on the meta device (no fused kernels)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net_or_run(x)
    return counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize("name", REFERENCES)
def test_torch_counts_the_same_for_the_reference_networks(name: str) -> None:
    reference, plan = nets.NETWORKS[name], plan_of(name)
    x = torch.empty(2, *reference.shape, device="meta")
    assert torch_macs(nets.build(name).to("meta"), x) == plan.macs(plan.uniform(0.0))
    assert torch_macs(narrow(plan, nets.build(name), drawn(plan)), x) == plan.macs_of(drawn(plan))


@pytest.mark.parametrize("name", CASES)
def test_torch_counts_the_same_for_odd_networks(name: str) -> None:
    case = CASES[name]
    net, plan = trace(case)
    x = torch.empty(2, *case.shape, device="meta", dtype=torch.float64)
    assert torch_macs(narrow(plan, net, drawn(plan)), x) == plan.macs_of(drawn(plan))
    if name != "affine":  # a constant of its own keeps it off the meta device
        assert torch_macs(net.to("meta"), x) == plan.macs_of(plan.full)
    assert plan.macs(plan.uniform(0.0)) == plan.macs_of(plan.full)


def drawn(plan: SubnetPlan) -> Kept:
    return plan.draw(plan.uniform(0.4), torch.Generator().manual_seed(3))


def narrow(plan: SubnetPlan, net: nn.Module, kept: Kept):
    leaves = {name: leaf.to("meta") for name, leaf in plan.pack(dict(net.named_parameters()), kept).items()}
    return lambda x: plan.run(leaves, kept, x)


@given(st.floats(0.0, 0.5))
def test_the_densenets_follow_their_polynomial(rate: float) -> None:
    for name, convs in CONVS.items():
        plan, q = plan_of(name), 1 - rate
        a = 1 - 663_552 / convs
        expected = convs * (a * q * q + (1 - a) * q) + q * DENSENETS[name][-1]
        assert plan.macs(plan.uniform(rate)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "percent"), [("densenet-bc-19", 25.83), ("densenet-bc-40", 25.23), ("densenet-bc-100", 25.06)]
)
def test_macs_left_at_half(name: str, percent: float) -> None:
    plan = plan_of(name)
    left = plan.macs(plan.uniform(0.5)) - DENSENETS[name][-1] / 2
    assert round(100 * left / CONVS[name], 2) == percent


@given(st.floats(0.0, 0.5))
def test_the_cnn_follows_its_polynomial(rate: float) -> None:
    plan, q = plan_of("femnist-cnn"), 1 - rate
    expected = 3_276_800 * q * q + 722_944 * q + 15_872
    assert plan.macs(plan.uniform(rate)) == pytest.approx(expected, rel=1e-6)


def test_the_hidden_linear_layer_may_be_droppable() -> None:
    plan = plan_of("femnist-cnn", keep=False)
    assert [group.name for group in plan.groups] == ["conv1", "conv2", "hidden"]
    assert round(100 * plan.macs(plan.uniform(0.5)) / plan.macs(plan.uniform(0.0)), 2) == 27.97


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("densenet-bc-40", (0.527, 0.252)),
        ("densenet-bc-100", (0.525, 0.250)),
        ("femnist-cnn", (0.530, 0.279)),
    ],
)
def test_macs_left_at_the_widths_of_heterofl(name: str, left: tuple[float, float]) -> None:
    plan, generator = plan_of(name, keep=False), torch.Generator()
    for width, expected in zip((0.7, 0.7**2), left, strict=True):
        kept = plan.draw_counts([math.ceil(g.channels * width) for g in plan.groups], generator)
        assert round(plan.macs_of(kept) / plan.macs_of(plan.full), 3) == expected


@pytest.mark.parametrize(
    ("name", "draws"), [("densenet-bc-40", 4000), ("densenet-bc-100", 1500), ("digits-cnn", 4000)]
)
def test_bernoulli_draws_cost_what_is_expected(name: str, draws: int) -> None:
    plan, generator = plan_of(name), torch.Generator().manual_seed(0)
    rates = (0.5 * torch.rand(len(plan.groups), generator=generator)).tolist()
    costs = [plan.macs_of(plan.draw(rates, generator, bernoulli=True)) for _ in range(draws)]
    expected = plan.macs(rates, bernoulli=True)
    assert abs(sum(costs) / draws / expected - 1) < 0.002


def test_fixed_counts_cost_what_is_expected() -> None:
    plan, generator = plan_of("digits-cnn"), torch.Generator().manual_seed(0)
    rates = (0.37, 0.11, 0.45)
    costs = torch.tensor(
        [float(plan.macs_of(plan.draw(rates, generator))) for _ in range(4000)], dtype=torch.float64
    )
    assert abs(costs.mean() - plan.macs(rates)) < 3 * costs.std() / math.sqrt(len(costs))


def test_a_layer_that_reads_and_writes_one_group_costs_the_square_of_its_count() -> None:
    """E[n n] is not E[n] E[n]: the variance of the count is added; here all counts are enumerated."""
    _, plan = trace(CASES["called-twice"])
    (group,), rate = plan.groups, 0.45
    generator = torch.Generator()
    cost = {n: plan.macs_of(plan.draw_counts([n], generator)) for n in range(1, 9)}
    # Read by nobody else: the image's 3x3 convolution and the head; squared: `again` at two sizes, `sharing`.
    linear, squared = 36 * 9 * 3 + 5, (36 + 9 + 9) * 9
    assert cost == {n: linear * n + squared * n * n for n in cost}

    target, low, high = group.neighbours(rate)
    up = (target - low) / (high - low)
    assert plan.macs((rate,)) == pytest.approx(up * cost[high] + (1 - up) * cost[low], rel=1e-12)
    chance = {n: math.comb(8, n) * (1 - rate) ** n * rate ** (8 - n) for n in range(9)}
    expected = sum(p * cost[max(1, n)] for n, p in chance.items())
    assert plan.macs((rate,), bernoulli=True) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=20)
@given(st.floats(1e5, 4.1e6))
def test_the_uniform_rate_meets_a_cost(macs: float) -> None:
    plan = plan_of("femnist-cnn")
    rate = plan.uniform_rate(macs)
    floor = plan.macs(plan.uniform(1 - 1e-9))
    assert plan.macs(plan.uniform(rate)) == pytest.approx(min(max(macs, floor), 4_015_616), rel=1e-6)
    assert plan.uniform_rate(macs, 0.5) <= 0.5


def test_a_layer_used_twice_costs_twice() -> None:
    conv = nn.Conv2d(4, 4, 1)
    plan = SubnetPlan.trace(nn.Sequential(conv, nn.ReLU(), conv), torch.zeros(1, 4, 3, 3))
    assert [(term.layer, plan.term_macs(term)) for term in plan.terms] == [("0", 9 * 16)] * 2


def test_counts_are_for_a_sample_wherever_the_batch_lies() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widen, self.narrow = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.widen(x.transpose(0, 1)))
            return self.narrow(x.reshape(-1, 8)).view(7, -1, 5).mean(0)

    plan = SubnetPlan.trace(Tokens(), torch.zeros(1, 7, 6))
    assert [plan.term_macs(term) for term in plan.terms] == [7 * 6 * 8, 7 * 8 * 5]


def test_what_is_not_cut_counts_in_full() -> None:
    _, plan = trace(CASES["transformer"])
    other = [plan.term_macs(term) for term in plan.terms if term.kind == "other"]
    # Five tokens of width 8: four projections, the scores and the weighted sum.
    assert other == [4 * 5 * 8 * 8 + 2 * 5 * 5 * 8]


@given(st.data())
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", ["femnist-cnn", "densenet-bc-19", "resnet-20"])
def test_many_vectors_at_once_cost_what_each_costs(name: str, data: st.DataObject) -> None:
    plan = plan_of(name)
    # Rates on and off the grid, and such as miss it by an ulp.
    rate = st.one_of(st.floats(0, 0.99), st.sampled_from([0.0, 0.25, 0.5, 1 / 3, 0.1 + 0.2]))
    vectors = data.draw(st.lists(st.tuples(*[rate] * len(plan.groups)), min_size=1, max_size=3))
    found = plan.macs_of_vectors(np.array(vectors))
    assert found == pytest.approx([plan.macs(vector) for vector in vectors], rel=1e-12)
