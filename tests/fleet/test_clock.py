"""The virtual clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.fleet.availability import Availability, Constant, Exponential
from leanfleet.fleet.clock import VirtualClock, integral
from leanfleet.fleet.traces import Trace

STEPS = Trace((0.0, 10.0, 12.0, 20.0), (100.0, 0.0, 50.0, 200.0))

availabilities = st.one_of(
    st.builds(Constant, st.floats(1, 1e3)),
    st.builds(
        Exponential,
        st.floats(0, 10),
        st.floats(20, 1e3),
        changes_per_s=st.sampled_from([0.05, 1.0, 9.0]),
        seed=st.integers(0, 9),
        device=st.integers(0, 9),
    ),
    st.just(STEPS),
)
starts = st.floats(0, 500)
works = st.floats(0, 5e4)


@given(availabilities, starts, works)
def test_what_was_available_while_a_step_ran_is_what_it_cost(
    availability: Availability, start: float, macs: float
) -> None:
    clock = VirtualClock(availability, start)
    clock.spend(macs)
    assert clock.now() >= start
    assert clock.available(start, clock.now()) == pytest.approx(macs, rel=1e-9, abs=1e-6)


@given(availabilities, starts, st.floats(0, 100), st.floats(0, 100))
def test_the_integral_is_additive(
    availability: Availability, start: float, first: float, then: float
) -> None:
    middle, end = start + first, start + first + then
    parts = integral(availability, start, middle) + integral(availability, middle, end)
    assert integral(availability, start, end) == pytest.approx(parts, rel=1e-9, abs=1e-6)


@given(availabilities, starts, st.lists(works, max_size=5))
def test_many_small_steps_end_when_one_large_step_does(
    availability: Availability, start: float, steps: list[float]
) -> None:
    small, large = VirtualClock(availability, start), VirtualClock(availability, start)
    for macs in steps:
        small.spend(macs)
    large.spend(sum(steps))
    assert integral(availability, *sorted((small.now(), large.now()))) == pytest.approx(0, abs=1e-5)


def test_a_change_in_the_middle_of_a_mini_batch() -> None:
    # From 8 s: 2 s at 100 are 200 MACs, 2 s pass at rate 0, the remaining 300 take 6 s at 50: 8 + 2 + 2 + 6.
    clock = VirtualClock(STEPS, 8.0)
    clock.spend(500.0)
    assert clock.now() == 18.0
    assert clock.rate() == 50.0
    clock.spend(100.0)
    assert clock.now() == 20.0
    assert clock.rate() == 200.0
    clock.spend(1_000.0)
    assert clock.now() == 25.0
    assert clock.available(8.0, 25.0) == 1_600.0


def test_a_rate_of_zero_waits_for_the_next_change() -> None:
    clock = VirtualClock(STEPS, 10.5)
    clock.spend(0.0)
    assert clock.now() == 10.5
    clock.spend(50.0)
    assert clock.now() == 13.0


def test_a_rate_of_zero_for_ever_never_ends() -> None:
    clock = VirtualClock(Trace((0.0, 1.0), (10.0, 0.0)))
    clock.spend(10.0)
    assert clock.now() == 1.0
    clock.spend(1.0)
    assert clock.now() == math.inf
    assert clock.rate() == 0.0
    clock.spend(1.0)
    assert clock.now() == math.inf


@pytest.mark.parametrize("macs", [-1.0, math.nan])
def test_a_step_cannot_cost_less_than_nothing(macs: float) -> None:
    with pytest.raises(ValueError, match="at least 0 MACs"):
        VirtualClock(STEPS).spend(macs)


@pytest.mark.parametrize(("start", "end"), [(2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_an_integral_needs_two_finite_times_in_order(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="cannot integrate"):
        integral(STEPS, start, end)
