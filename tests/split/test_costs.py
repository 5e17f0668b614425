"""Every figure to its last digit, from the MACs of the real modules."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from closed_forms import Schedule, client_macs, dense_bytes_up, handover_bytes, server_macs
from leanfleet.nets import build
from leanfleet.split.costs import local_rounds, talkers
from leanfleet.split.heads import head_macs, local_head

NON_IID = {"clients": 5, "rounds": 20, "iterations": 765}
CIFAR = {"clients": 5, "rounds": 20, "iterations": 338}
CLASSES = {765: 5, 338: 10}


class Halves:
    """LeNet cut after its first layers, counted with torch's own counter."""

    def __init__(self, layers: int, classes: int) -> None:
        net = build("lenet", classes=classes)
        assert isinstance(net, nn.Sequential)
        x = torch.zeros(1, 3, 32, 32)
        with FlopCounterMode(display=False) as client:
            passing = net[:layers](x)
        with FlopCounterMode(display=False) as server:
            net[layers:](passing)
        self.shape = tuple(passing.shape[1:])
        self.values = passing.numel()
        self.client_macs, self.server_macs = client.get_total_flops() // 2, server.get_total_flops() // 2
        self.client_params, self.server_params = (
            sum(p.numel() for p in half.parameters()) for half in (net[:layers], net[layers:])
        )
        self.head_params = sum(p.numel() for p in local_head(self.shape).parameters())


@cache
def halves(layers: int, classes: int) -> Halves:
    return Halves(layers, classes)


# mu in fifths: client params, head params, client MACs, head MACs, server MACs (C=5), server params (5, 10), values.
TABLE = {
    1: (1_520, 10_944, 1_536_000, 663_552, 9_362_500, (2_988_855, 2_991_360), 5_120),
    2: (26_570, 14_784, 7_936_000, 417_792, 2_962_500, (2_963_805, 2_966_310), 3_200),
    3: (2_587_370, 221_504, 10_496_000, 221_184, 402_500, (403_005, 405_510), 800),
    4: (2_987_870, 144_704, 10_896_000, 144_384, 2_500, (2_505, 5_010), 500),
}


@pytest.mark.parametrize("layers", TABLE)
def test_table_of_the_halves(layers: int) -> None:
    five, ten = halves(layers, 5), halves(layers, 10)
    assert TABLE[layers] == (
        five.client_params,
        five.head_params,
        five.client_macs,
        head_macs(five.shape),
        five.server_macs,
        (five.server_params, ten.server_params),
        five.values,
    )
    assert ten.server_macs == five.server_macs + 2_500


@pytest.mark.parametrize(
    ("protocol", "kappa", "layers", "client", "total", "up"),
    [
        (NON_IID, 0.30, 1, 5_384_503_296_000, 15_010_651_296_000, 21_056_716_800),
        (NON_IID, 0.45, 1, 5_384_503_296_000, 12_947_905_296_000, 16_544_563_200),
        (NON_IID, 0.60, 1, 5_384_503_296_000, 10_885_159_296_000, 12_032_409_600),
        (NON_IID, 0.75, 1, 5_384_503_296_000, 8_822_413_296_000, 7_520_256_000),
        (NON_IID, 0.90, 1, 5_384_503_296_000, 6_759_667_296_000, 3_008_102_400),
        (NON_IID, 0.60, 2, 20_450_082_816_000, 22_190_610_816_000, 7_520_256_000),
        (NON_IID, 0.60, 3, 26_235_666_432_000, 26_472_143_232_000, 1_880_064_000),
        (NON_IID, 0.60, 4, 27_026_860_032_000, 27_028_328_832_000, 1_175_040_000),
        (CIFAR, 0.60, 1, 2_379_035_443_200, 4_810_039_603_200, 5_316_280_320),
        (CIFAR, 0.60, 2, 9_035_461_427_200, 9_805_127_987_200, None),
    ],
)
def test_adasplit(
    protocol: dict[str, int], kappa: float, layers: int, client: int, total: int, up: int | None
) -> None:
    schedule = Schedule(**protocol, kappa=kappa, eta=0.6)
    cut = halves(layers, CLASSES[schedule.iterations])
    own = client_macs(schedule, cut.client_macs, head_macs(cut.shape))
    assert own == client
    assert own + server_macs(schedule, cut.server_macs) == total
    if up is not None:
        assert dense_bytes_up(schedule, cut.values) == up


@pytest.mark.parametrize(
    ("protocol", "client", "total", "up", "samples"),
    [
        (NON_IID, 3_760_128_000_000, 26_679_528_000_000, 50_135_040_000, 2_448_000),
        (CIFAR, 1_661_337_600_000, 11_790_521_600_000, 22_151_168_000, 1_081_600),
    ],
)
def test_sl_basic_sends_all_and_has_no_head(
    protocol: dict[str, int], client: int, total: int, up: int, samples: int
) -> None:
    schedule = Schedule(**protocol)
    cut = halves(1, CLASSES[schedule.iterations])
    assert schedule.samples == schedule.samples_sent == samples
    assert client_macs(schedule, cut.client_macs) == client
    assert client + server_macs(schedule, cut.server_macs) == total
    # Federated averaging: the whole network on the client.
    assert client_macs(schedule, cut.client_macs + cut.server_macs) == total
    assert dense_bytes_up(schedule, cut.values) == up


def test_samples_that_reach_the_server() -> None:
    assert Schedule(**NON_IID, kappa=0.6, eta=0.6).samples_sent == 587_520 == 32 * 18_360


@pytest.mark.parametrize(
    ("protocol", "head", "gigabytes"),
    [
        (NON_IID, True, (3.814, 12.65, 859.5, 958.6)),
        (CIFAR, True, (1.685, 5.591, 379.8, 423.5)),
        (NON_IID, False, (0.465,)),
        (CIFAR, False, (0.206,)),
    ],
)
def test_handovers(protocol: dict[str, int], head: bool, gigabytes: tuple[float, ...]) -> None:
    schedule = Schedule(**protocol, kappa=0.6, eta=0.6)
    for layers, expected in enumerate(gigabytes, start=1):
        cut = halves(layers, 5)
        found = handover_bytes(schedule, cut.client_params + head * cut.head_params)
        assert found / 1e9 == pytest.approx(expected, rel=4e-4, abs=5e-4)
    assert handover_bytes(Schedule(1, 1, 1), 12_464) == 49_856


@given(st.integers(1, 100), st.integers(0, 100))
def test_rounds_without_a_server(rounds: int, percent: int) -> None:
    assert local_rounds(percent / 100, rounds) == percent * rounds // 100


@pytest.mark.parametrize(
    ("eta", "clients", "k"),
    [(0.6, 5, 3), (0.0, 5, 1), (1.0, 5, 5), (0.2, 5, 1), (0.6, 100, 60), (0.01, 5, 1)],
)
def test_clients_that_talk(eta: float, clients: int, k: int) -> None:
    assert talkers(eta, clients) == k
