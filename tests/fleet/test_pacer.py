"""The pacer, and the units of everything that is spent."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.fleet.availability import Availability, Constant, Exponential, rate_bounds
from leanfleet.fleet.clock import VirtualClock
from leanfleet.fleet.pacer import Pacer
from leanfleet.fleet.traces import Trace
from leanfleet.ledger import PHI

FULL, HALF = 1_000.0, 252.0  # forward MACs per sample
BATCH, BATCHES, EPOCHS = 8, 4, 2
SAMPLES = BATCH * BATCHES * EPOCHS
SECONDS = 50.0
BOUNDS = rate_bounds(macs_full=FULL, macs_half=HALF, samples=SAMPLES, round_seconds=SECONDS, ratio=4.0)


def pacer_of(availability: Availability, start: float = 0.0, **settings: object) -> Pacer:
    clock = VirtualClock(availability, start)
    return Pacer(clock, round_start=start, round_seconds=SECONDS, samples=SAMPLES, **settings)  # type: ignore[arg-type]


def train(pacer: Pacer) -> list[float]:
    """Train as DISTREAL does, with any cost between the cheapest and the full network; return the finished costs."""
    finished: list[float] = []
    for _ in range(BATCHES * EPOCHS):
        budget = pacer.budget(BATCH, HALF)
        if budget is None:
            break
        macs = min(FULL, max(HALF, budget))
        if not pacer.spend(3 * macs * BATCH, BATCH):
            break
        finished.append(macs)
    return finished


def test_a_device_at_its_highest_rate_just_finishes_the_whole_network() -> None:
    # The one place where a factor of 3 would show: forward MACs in the budget, training MACs on the clock.
    pacer = pacer_of(Constant(BOUNDS.high), 7.0, margin=0.0)
    assert train(pacer) == pytest.approx([FULL] * BATCHES * EPOCHS)
    assert pacer.finished_at == pytest.approx(7.0 + SECONDS)
    assert pacer.macs == pytest.approx(3 * FULL * SAMPLES)
    assert pacer.available_macs == pytest.approx(3 * FULL * SAMPLES)
    assert not pacer.late


def test_a_device_at_its_lowest_rate_just_finishes_the_cheapest_form() -> None:
    pacer = pacer_of(Constant(BOUNDS.low))
    assert train(pacer) == [HALF] * BATCHES * EPOCHS  # the margin asks for less, and there is nothing less
    assert pacer.finished_at == pytest.approx(SECONDS)
    assert not pacer.late


rates = st.floats(BOUNDS.low, BOUNDS.high)
rules = st.sampled_from(["pace", "slot"])
moving = st.one_of(
    st.builds(
        Exponential,
        st.sampled_from([0.0, BOUNDS.low]),
        st.just(BOUNDS.high),
        changes_per_s=st.sampled_from([0.01, 0.1, 1.0]),
        seed=st.integers(0, 99),
        device=st.integers(0, 99),
    ),
    st.lists(st.floats(0, BOUNDS.high), min_size=1, max_size=6).map(
        lambda rates: Trace(tuple(9.0 * k for k in range(len(rates))), tuple(rates))
    ),
)


@given(rates, rules, st.floats(0, 0.5))
def test_a_constant_rate_is_never_late_and_used_up_to_the_margin(
    rate: float, rule: str, margin: float
) -> None:
    pacer = pacer_of(Constant(rate), rule=rule, margin=margin)
    assert len(train(pacer)) == BATCHES * EPOCHS
    assert not pacer.late
    share = 1 - margin if rule == "pace" else 1.0
    assert pacer.macs == pytest.approx(max(share * rate * SECONDS, 3 * HALF * SAMPLES))


@given(moving, st.floats(0, 1e4), rules, st.floats(0, 0.5))
def test_nobody_spends_more_than_there_is(
    availability: Availability, start: float, rule: str, margin: float
) -> None:
    pacer = pacer_of(availability, start, rule=rule, margin=margin)
    finished = train(pacer)
    assert pacer.late == (len(finished) < BATCHES * EPOCHS)
    assert start <= pacer.finished_at <= start + SECONDS
    assert 3 * BATCH * sum(finished) <= pacer.macs * (1 + 1e-9)
    assert pacer.macs <= pacer.available_macs * (1 + 2e-6) + 1e-6


@given(moving, st.integers(1, BATCH), st.floats(0, FULL), st.floats(0, 2 * SECONDS))
def test_a_budget_is_never_negative(
    availability: Availability, samples: int, cheapest: float, at: float
) -> None:
    clock = VirtualClock(availability, at)
    pacer = Pacer(clock, round_start=0.0, round_seconds=SECONDS, samples=SAMPLES, margin=0.5)
    budget = pacer.budget(samples, cheapest)
    assert budget is None or 0 <= budget < math.inf
    assert pacer.late == (budget is None)


def test_budgets_by_hand() -> None:
    # 64 samples in 50 s at 960 MAC/s: 750 MACs a sample, a third of them forward, less the margin.
    availability = Trace((0.0, 20.0), (960.0, 1_920.0))
    paced, slotted = pacer_of(availability, margin=0.1), pacer_of(availability, margin=0.1, rule="slot")
    assert paced.budget(8, 10.0) == pytest.approx(960 * 45 / (3 * 64))
    assert slotted.budget(8, 10.0) == pytest.approx(960 * 50 / (3 * 64))
    for pacer in (paced, slotted):
        assert pacer.spend(28_800.0, 16)  # 20 s at 960, then 5 s at 1920
    assert paced.budget(8, 10.0) == pytest.approx(1_920 * 20 / (3 * 48))
    assert slotted.budget(8, 10.0) == pytest.approx(1_920 * 50 / (3 * 64))


def test_a_step_that_cannot_end_in_time_is_not_begun() -> None:
    pacer = pacer_of(Trace((0.0, 40.0), (960.0, 96.0)))
    assert pacer.spend(38_400.0, 8)  # to 40 s; 10 s at 96 are left
    assert pacer.budget(8, 40.0) is not None
    assert not pacer.late
    assert pacer.budget(8, 40.1) is None
    assert pacer.late
    assert pacer.finished_at == 40.0
    assert pacer.macs == 38_400.0


def test_of_a_late_step_only_the_part_before_the_deadline_is_spent() -> None:
    pacer = pacer_of(Trace((0.0, 40.0), (960.0, 96.0)), start=10.0)
    assert pacer.spend(9_600.0, 8)
    assert not pacer.spend(40_000.0, 8)  # 20 s at 960, 20 s at 96 up to the deadline at 60 s, and more
    assert pacer.late
    assert pacer.macs == pytest.approx(9_600 + 20 * 960 + 20 * 96)
    assert pacer.macs == pytest.approx(pacer.available_macs)
    assert pacer.finished_at == 60.0
    assert pacer.budget(8, 1.0) is None
    assert not pacer.spend(10.0, 8)
    assert pacer.macs == pytest.approx(pacer.available_macs)


@pytest.mark.parametrize(("excess", "in_time"), [(0.9e-6, True), (1.1e-6, False)])
def test_the_deadline_forgives_a_millionth(excess: float, in_time: bool) -> None:
    pacer = pacer_of(Constant(1_000.0))
    assert pacer.spend(1_000.0 * SECONDS * (1 + excess), SAMPLES) is in_time


def test_without_a_deadline_everything_is_in_time() -> None:
    pacer = pacer_of(Constant(1_000.0), deadline=False)
    assert pacer.spend(80_000.0, SAMPLES)
    assert pacer.budget(8, FULL) == 0.0
    assert not pacer.late
    assert pacer.macs == 80_000.0
    assert pacer.available_macs == 50_000.0
    assert pacer.finished_at == 80.0


def test_a_device_without_means_is_late() -> None:
    pacer = pacer_of(Constant(0.0))
    assert pacer.budget(8, 1.0) is None
    assert not pacer.spend(1.0, 8)
    assert (pacer.late, pacer.macs, pacer.finished_at) == (True, 0.0, SECONDS)


def test_a_device_without_means_waits_for_them():
    trace = Trace((0.0, 0.4), (0.0, 30.0))
    pacer = Pacer(VirtualClock(trace), round_start=0.0, round_seconds=1.0, samples=2, margin=0.0)
    assert pacer.budget(1, 1.0) == pytest.approx(30.0 * 0.6 / (PHI * 2))
    assert pacer.spend(9.0, 1)
    assert pacer.finished_at == pytest.approx(0.7)


def test_a_device_that_never_gets_means_stops():
    pacer = Pacer(VirtualClock(Trace((0.0,), (0.0,))), round_start=0.0, round_seconds=1.0, samples=2)
    assert pacer.budget(1, 1.0) is None
    assert pacer.late
    assert pacer.macs == 0.0


def test_what_fits_ends_in_time():
    pacer = Pacer(VirtualClock(Constant(30.0)), round_start=0.0, round_seconds=1.0, samples=4)
    assert pacer.fits(10.0, 1)
    assert not pacer.fits(10.1, 1)
    assert pacer.spend(PHI * 5.0, 1)
    assert not pacer.fits(5.1, 1)
