"""What devices can spend over time."""

from __future__ import annotations

import math
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import ExperimentError
from leanfleet.fleet.availability import (
    Availability,
    AvailabilityConfig,
    Constant,
    Exponential,
    availability,
    rate_bounds,
    uniform,
)
from leanfleet.fleet.traces import Trace
from leanfleet.ledger import PHI

LOW, HIGH = 25.0, 100.0

times = st.floats(0, 1e4)
exponentials = st.builds(
    Exponential,
    st.just(LOW),
    st.just(HIGH),
    changes_per_s=st.sampled_from([0.01, 0.5, 0.7, 4.0]),
    seed=st.integers(0, 3),
    device=st.integers(0, 3),
)
traces = st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0, 1e9)), max_size=8).map(
    lambda steps: Trace(
        (0.0, *np.cumsum([gap for gap, _ in steps]).tolist()), (1.0, *(rate for _, rate in steps))
    )
)
everything = st.one_of(st.builds(Constant, st.floats(0, 1e12)), exponentials, traces)


def changes(device: Availability, start: float, end: float) -> list[float]:
    """Walk from change to change."""
    found = []
    while (start := device.next_change(start)) < end:
        found.append(start)
    return found


@given(everything, times, st.floats(0, 1, exclude_max=True))
def test_the_rate_is_constant_up_to_the_next_change(device: Availability, t: float, share: float) -> None:
    change = device.next_change(t)
    assert change > t
    between = min(t + share * (min(change, t + 1e3) - t), math.nextafter(change, 0))
    assert device.rate(between) == device.rate(t)
    assert device.next_change(between) == change


@given(exponentials, st.lists(times, max_size=8), st.randoms())
def test_any_order_of_questions_gets_the_same_answers(
    device: Exponential, ts: list[float], random: Random
) -> None:
    def ask(order: list[float]) -> dict[float, tuple[float, float]]:
        twin = Exponential(device.low, device.high, device.changes_per_s, device.seed, device.device)
        return {t: (twin.rate(t), twin.next_change(t)) for t in order}

    shuffled = random.sample(ts, len(ts))
    assert ask(ts) == ask(shuffled) == {t: (device.rate(t), device.next_change(t)) for t in reversed(ts)}


@given(exponentials, times)
def test_a_change_begins_a_new_level_at_its_very_time(device: Exponential, t: float) -> None:
    change = device.next_change(t)
    assert device.rate(change) != device.rate(math.nextafter(change, 0)) == device.rate(t)


def test_blocks_without_a_change_carry_the_last_level_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package re-exports a function of the module's name, so only the import system finds the module itself.
    monkeypatch.setattr(import_module("leanfleet.fleet.availability"), "_CHANGES_PER_BLOCK", 0.1)
    for number in range(20):
        walker = Exponential(LOW, HIGH, 1.0, 5, number)
        start = uniform(LOW, HIGH, 5, number).rate_macs_per_s
        for begin, end in pairwise([0.0, *changes(walker, 0.0, 20.0)]):
            level = walker.rate(begin)
            assert (level == start) == (begin == 0.0)
            jumper = Exponential(LOW, HIGH, 1.0, 5, number)
            assert jumper.rate((begin + end) / 2) == jumper.rate(math.nextafter(end, 0)) == level


def test_changes_are_a_poisson_process() -> None:
    # Windows of 3.3 s do not fall together with the blocks in which changes are drawn.
    walk = np.array(changes(Exponential(LOW, HIGH, 2.0, 1, 0), 0.0, 16_500.0))
    counts = np.histogram(walk, bins=5_000, range=(0, 16_500))[0]
    assert counts.mean() == pytest.approx(6.6, abs=4 * math.sqrt(6.6 / 5_000))
    assert counts.var() == pytest.approx(6.6, rel=4 * math.sqrt(2 / 5_000) * 1.1)
    assert np.corrcoef(counts[1:], counts[:-1])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(5_000))
    gaps = np.diff(walk)
    assert np.quantile(gaps, [0.25, 0.5, 0.9]) == pytest.approx(-np.log([0.75, 0.5, 0.1]) / 2, rel=0.05)


def test_levels_are_uniform_and_independent() -> None:
    device = Exponential(LOW, HIGH, 2.0, 1, 1)
    levels = np.array([device.rate(t) for t in changes(device, 0.0, 10_000.0)])
    shares = np.sort((levels - LOW) / (HIGH - LOW))
    distance = np.abs(shares - np.linspace(0, 1, len(shares))).max()
    assert distance < 1.95 / math.sqrt(len(shares))  # Kolmogorov-Smirnov at 0.1 %
    assert np.corrcoef(levels[1:], levels[:-1])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(len(levels)))


def test_every_device_starts_at_its_own_uniform_level() -> None:
    starts = [Exponential(LOW, HIGH, 1.0, 7, device).rate(0.0) for device in range(2_000)]
    assert starts == [uniform(LOW, HIGH, 7, device).rate(123.0) for device in range(2_000)]
    assert min(starts) >= LOW
    assert max(starts) <= HIGH
    assert np.mean(starts) == pytest.approx((LOW + HIGH) / 2, abs=4 * (HIGH - LOW) / math.sqrt(12 * 2_000))
    assert np.std(starts) == pytest.approx((HIGH - LOW) / math.sqrt(12), rel=0.06)


@given(exponentials, times)
def test_the_shape_of_a_trace_does_not_depend_on_its_scale(device: Exponential, t: float) -> None:
    big = Exponential(10 * LOW, 10 * HIGH, device.changes_per_s, device.seed, device.device)
    assert big.rate(t) == pytest.approx(10 * device.rate(t))
    assert big.next_change(t) == device.next_change(t)


@pytest.mark.parametrize(("seed", "device"), [(1, 0), (0, 1)])
def test_another_seed_or_device_has_another_trace(seed: int, device: int) -> None:
    here, there = Exponential(LOW, HIGH, 1.0, 0, 0), Exponential(LOW, HIGH, 1.0, seed, device)
    assert not set(changes(here, 0, 100)) & set(changes(there, 0, 100))
    assert here.rate(0) != there.rate(0)


@pytest.mark.parametrize(
    ("low", "high", "speed"), [(-1, 1, 1), (2, 1, 1), (0, math.inf, 1), (0, 1, 0), (0, 1, math.nan)]
)
def test_impossible_parameters_are_refused(low: float, high: float, speed: float) -> None:
    with pytest.raises(ValueError, match="no such availability"):
        Exponential(low, high, speed, 0, 0)


@given(st.floats(1, 1e9), st.floats(0.01, 1), st.integers(1, 5_000), st.floats(1e-3, 1e5), st.floats(1, 100))
def test_bounds(macs: float, half: float, samples: int, round_seconds: float, ratio: float) -> None:
    bounds = rate_bounds(
        macs_full=macs, macs_half=half * macs, samples=samples, round_seconds=round_seconds, ratio=ratio
    )
    assert bounds.high * round_seconds == pytest.approx(3 * macs * samples)
    assert bounds.low == pytest.approx(bounds.high * max(1 / ratio, half))


FLEET = {"macs_full": 100.0, "macs_half": 25.2, "samples": 32}
R_MAX = PHI * 100.0 * 32 / 10.0


def test_factory_makes_each_kind(tmp_path: Path) -> None:
    def make(kind: str, **settings: object) -> Availability:
        config = AvailabilityConfig(kind, round_seconds=10.0, **settings)  # type: ignore[arg-type]
        return availability(config, seed=3, device=2, **FLEET)  # type: ignore[arg-type]

    file = tmp_path / "traces.csv"
    file.write_text("device,seconds,rate\na,0,0.5\na,4,1\nb,0,0\n")
    assert make("constant") == Constant(R_MAX)
    assert make("uniform") == uniform(0.252 * R_MAX, R_MAX, 3, 2)
    assert make("uniform", ratio=2.0) == uniform(0.5 * R_MAX, R_MAX, 3, 2)
    assert make("exponential", changes_per_round=4.0) == Exponential(0.252 * R_MAX, R_MAX, 0.4, 3, 2)
    assert make("exponential", changes_per_round=0.0) == make("uniform")
    assert make("trace", trace=file) == Trace(
        (0.0, 4.0), (0.5 * R_MAX, R_MAX)
    )  # the third device is the first again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "exponental"}, "did you mean 'exponential'"),
        ({"ratio": 0.5}, "ratio"),
        ({"ratio": math.nan}, "ratio"),
        ({"changes_per_round": -1.0}, "changes_per_round"),
        ({"round_seconds": 0.0}, "round_seconds"),
        ({"kind": "trace"}, "trace file"),
        ({"trace": Path("x.csv")}, "trace file"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        AvailabilityConfig(**settings)  # type: ignore[arg-type]
