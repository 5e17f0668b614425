"""Links lose, delay and double messages at the rates they are told, the same wherever one asks."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_gossip import experiment

from leanfleet.engines.links import Arrival, Links
from leanfleet.experiment import GossipFleet

PAIRS = [(i, j) for i, j in product(range(4), repeat=2) if i != j]


def links(*overrides: str, seed: int = 0) -> Links:
    fleet = experiment(*overrides).fleet
    assert isinstance(fleet, GossipFleet)
    return Links(fleet, seed)


def test_perfect_links_deliver_once_and_in_time() -> None:
    assert links().arrivals(7, PAIRS) == [Arrival(7, i, j) for i, j in PAIRS]


def test_rates_are_kept() -> None:
    lossy, times = links("fleet.loss_rate=0.2", "fleet.late_rate=0.3", "fleet.double_rate=0.4"), 300
    counts = Counter(
        tuple(a.exchange - k for a in lossy.arrivals(k, [pair])) for k in range(times) for pair in PAIRS
    )
    shares = {what: count / times / len(PAIRS) for what, count in counts.items()}
    expected = {(): 0.2, (0,): 0.3, (1,): 0.18, (0, 1): 0.2, (1, 2): 0.12}
    assert shares == pytest.approx(expected, abs=0.025)


@given(st.integers(0, 1000), st.integers(0, 5), st.sampled_from(PAIRS))
def test_a_link_is_the_same_alone_and_among_others(exchange: int, seed: int, pair: tuple[int, int]) -> None:
    lossy = links("fleet.loss_rate=0.3", "fleet.late_rate=0.3", "fleet.double_rate=0.3", seed=seed)
    among = [a for a in lossy.arrivals(exchange, PAIRS) if (a.sender, a.receiver) == pair]
    assert lossy.arrivals(exchange, [pair]) == among


def test_seeds_differ() -> None:
    found = [[links("fleet.loss_rate=0.5", seed=s).arrivals(k, PAIRS) for k in range(3)] for s in (0, 1)]
    assert found[0] != found[1]


def test_a_cut_link_loses_all_for_its_time_in_its_direction() -> None:
    cut = links("fleet.cuts=[[0, 1, 3, 5], [0, 1, 8, 8]]")
    assert [k for k in range(10) if not cut.arrivals(k, [(0, 1)])] == [3, 4, 5, 8]
    assert all(cut.arrivals(k, [(1, 0)]) for k in range(10))


def test_who_is_away_gets_nothing() -> None:
    away = links("fleet.absences=[[1, 3, 5], [2, 4, -1]]", "fleet.graph=complete")
    assert [k for k in range(10) if away.away(1, k)] == [3, 4, 5]
    assert [k for k in range(100) if not away.away(2, k)] == [0, 1, 2, 3]
    assert [k for k in range(10) if not away.arrivals(k, [(0, 1)])] == [3, 4, 5]


def test_what_comes_late_to_one_who_is_away_then_is_lost() -> None:
    late = links("fleet.late_rate=0.999", "fleet.absences=[[1, 3, 3]]")
    assert [late.arrivals(k, [(0, 1)]) for k in (1, 2, 3)] == [[Arrival(2, 0, 1)], [], [Arrival(4, 0, 1)]]
