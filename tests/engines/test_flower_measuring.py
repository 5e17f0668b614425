"""What a device learns of itself, and that an unchanged pacer meets the deadline with it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.engines.devices import make_pacer, take_part
from leanfleet.engines.flower.caps import Caps
from leanfleet.engines.flower.measuring import MeasuredClock, Profile, _line, calibrate
from leanfleet.engines.job import federated_job
from leanfleet.ledger import PHI
from leanfleet.wire import decode, encode
from tiny_experiment import experiment

WHOLE = 1e6
NO_CAPS = Caps()


class Machine:
    """A device whose steps take what a profile says, times a load that changes."""

    def __init__(self, profile: Profile, load=lambda t: 1.0) -> None:
        self.profile, self.load, self.t, self.slept = profile, load, 0.0, 0.0

    def now(self) -> float:
        return self.t

    def sleep(self, seconds: float) -> None:
        self.t += seconds
        self.slept += seconds

    def clock(self, believed: Profile | None = None, caps: Caps = NO_CAPS) -> MeasuredClock:
        return MeasuredClock(believed or self.profile, caps, self.t, self.now, self.sleep)

    def compute(self, macs: float) -> None:
        self.t += self.profile.seconds(macs) * self.load(self.t)


def profile(offset=0.0, slope=1e-6):
    return Profile(offset, slope, WHOLE)


@given(st.floats(0, 1e3), st.floats(1e-9, 1e3))
def test_a_line_without_noise_is_found(offset, slope):
    points = [(m, offset + slope * m) for m in (1.0, 2.0, 4.0)]
    found = _line(points)
    assert found == pytest.approx((offset, slope), rel=1e-6, abs=1e-9 * (1 + offset + slope))


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(1e-6, 1e3)), min_size=1, max_size=5))
def test_no_measurement_makes_a_step_cost_nothing(points):
    offset, slope = _line(points)
    assert offset >= 0
    assert slope > 0


def test_the_ratio_is_a_moving_average_with_alpha_0_3():
    p = profile().learn(WHOLE, 1.5)
    assert p.ratio == pytest.approx(0.7 + 0.3 * 1.5)
    assert p.learn(WHOLE, 1.5).ratio == pytest.approx(0.7 * 1.15 + 0.3 * 1.5)


def test_a_single_outlier_changes_nothing_and_a_second_one_is_believed():
    once = profile().learn(WHOLE, 5.0)
    assert once.ratio == 1.0
    assert once.learn(WHOLE, 1.0).ratio == pytest.approx(1.0)
    assert once.learn(WHOLE, 4.0).ratio == pytest.approx(4.0)


def test_the_first_step_of_a_process_is_not_learned_from():
    machine = Machine(profile())
    clock = machine.clock()
    for seconds in (7.0, 1.0, 1.0):
        machine.t += seconds
        clock.spend(WHOLE)
    assert clock.profile.ratio == pytest.approx(1.0)


def test_half_a_core_rests_as_long_as_it_works():
    machine = Machine(profile())
    clock = machine.clock(caps=Caps(duty=0.5))
    for _ in range(40):
        machine.compute(WHOLE)
        clock.spend(WHOLE)
    assert machine.slept == pytest.approx(machine.t / 2)
    assert clock.rate() == pytest.approx(WHOLE / 2, rel=0.01), "and the pacer is told"


def test_the_rate_is_that_of_steps_like_the_last_one():
    machine = Machine(profile(offset=1.0))
    clock = machine.clock()
    assert clock.rate() == pytest.approx(WHOLE / 2)
    machine.compute(WHOLE / 4)
    clock.spend(WHOLE / 4)
    assert clock.rate() == pytest.approx(WHOLE / 4 / 1.25)
    assert clock.share == pytest.approx(0.25)


class Unplugged(Caps):
    def paused(self) -> bool:
        return True


def test_a_device_that_may_not_train_has_no_rate_and_waits():
    machine = Machine(profile())
    clock = machine.clock(caps=Unplugged())
    assert clock.rate() == 0.0
    clock.wait()
    assert machine.t == 1.0
    assert clock.available(0.0, 2.0) == pytest.approx(2 * WHOLE)
    assert clock.available(3.0, 2.0) == 0.0


LOADS = {
    "idle": lambda t: 1.0,
    "busy": lambda t: 1.8,
    "busy from the middle": lambda t: 1.0 if t < 5 else 2.5,
    "busy until the middle": lambda t: 2.5 if t < 5 else 1.0,
    "now and then": lambda t: 2.2 if int(t) % 3 == 0 else 1.0,
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_distreal_meets_its_deadline_whatever_else_runs(monkeypatch, load, offset):
    """Section 7's promise with the real method, pacer and clock; only the machine is made up."""
    job = federated_job(experiment("training.batch_size=4"))
    plan, method, samples = job.method.plan, job.method, job.samples(0)
    whole = float(PHI * plan.macs_of(plan.full) * 4)
    # All steps whole would take 80 % of the round on an idle device.
    step = 8.0 / (samples / 4)
    machine = Machine(Profile(offset * step, (1 - offset) * step / whole, whole), LOADS[load])
    clock = machine.clock()
    done = clock.spend

    def spend(macs: float) -> None:
        machine.compute(macs)
        done(macs)

    monkeypatch.setattr(clock, "spend", spend)
    pacer = make_pacer(job, clock, 0.0, 10.0, samples)
    params = {name: p.detach() for name, p in job.net.named_parameters()}
    down = encode(method.assign(params, None, 0, torch.Generator()))
    up = take_part(job, 0, 0, down, pacer)
    assert decode(up, *method.expects(decode(down))).scalars["weight"] > 0
    # A step that crosses the deadline is rolled back; one step is all that may be lost.
    assert machine.t <= 10.0 + 3 * step
    assert pacer.macs > 0.35 * 0.8 * clock.available(0.0, 10.0) / 2.5


def test_calibration_knows_the_whole_network_and_stops_in_time():
    job = federated_job(experiment("training.batch_size=4"))
    plan = job.method.plan
    found = calibrate(job, seconds=0.0)
    assert found.whole_macs == PHI * plan.macs_of(plan.full) * 4
    assert found.seconds(found.whole_macs) > 0
    assert Profile(**found.state()) == found
    assert found.whole_rate == pytest.approx(found.whole_macs / found.seconds(found.whole_macs))
