"""What a device learns of itself, and that it meets the deadline with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.engines.devices import make_pacer, take_part
from leanfleet.engines.hardware import measuring
from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.hardware.measuring import MeasuredClock, MeasuredPacer, Profile, calibrate, workload
from leanfleet.engines.job import federated_job
from leanfleet.ledger import PHI
from leanfleet.profiling import StepTime
from leanfleet.subnet.lut import Lut
from leanfleet.wire import decode, encode
from tiny_experiment import experiment

WHOLE = 1e6
NO_CAPS = Caps()


class Machine:
    """A device whose steps take what a profile says, times a load that changes."""

    def __init__(self, profile: Profile, load=lambda t: 1.0) -> None:
        self.profile, self.load, self.t, self.slept, self.computed = profile, load, 0.0, 0.0, 0.0

    def now(self) -> float:
        return self.t

    def sleep(self, seconds: float) -> None:
        self.t += seconds
        self.slept += seconds

    def clock(self, believed: Profile | None = None, caps: Caps = NO_CAPS) -> MeasuredClock:
        return MeasuredClock(
            believed or self.profile, caps, self.t, self.now, self.sleep, lambda: self.computed
        )

    def compute(self, macs: float) -> None:
        self.computed += self.profile.seconds(macs)
        self.t += self.profile.seconds(macs) * self.load(self.t)


def profile(offset=0.0, seconds=1.0, whole=WHOLE):
    """A line from what a step of no MACs takes to what the whole network's takes."""
    return Profile([0.0, whole], [offset, seconds])


@st.composite
def profiles(draw):
    """Any that a calibration may find."""
    count = draw(st.integers(1, 6))
    macs = np.cumsum(draw(st.lists(st.floats(1e3, 1e9), min_size=count, max_size=count))).tolist()
    took = np.cumsum(draw(st.lists(st.floats(0, 10), min_size=count + 1, max_size=count + 1))) + 1e-6
    return Profile([0.0, *macs], took.tolist(), ratio=draw(st.floats(0.1, 10)))


@given(profiles(), st.floats(0, 1), st.floats(0, 1))
def test_more_macs_never_take_less(known, one, other):
    narrow, wide = sorted((one, other))
    assert known.seconds(narrow * known.whole_macs) <= known.seconds(wide * known.whole_macs)


@given(profiles(), st.floats(0.01, 1.5))
def test_what_fits_a_time_is_predicted_to_take_it_at_most(known, share):
    """And nothing larger does: it is the largest step."""
    seconds = share * known.seconds(known.whole_macs)
    found = known.macs_within(seconds)
    if found:
        assert known.seconds(found) <= seconds * (1 + 1e-6)
    assert known.seconds(found + 1e-3 * known.whole_macs) >= seconds * (1 - 1e-6)


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


def test_time_that_others_had_is_rest_already():
    machine = Machine(profile(), load=lambda t: 2.0)
    clock = machine.clock(caps=Caps(duty=0.5))
    for _ in range(10):
        machine.compute(WHOLE)
        clock.spend(WHOLE)
    assert machine.slept == 0


def test_a_calibration_knows_that_there_will_be_rests():
    job = federated_job(experiment("network.name=digits-cnn-small"))
    assert calibrate(job, duty=0.25, seconds=0.1).ratio == 4.0


def test_the_rate_is_that_of_the_whole_network():
    machine = Machine(profile(offset=1.0, seconds=2.0))
    clock = machine.clock()
    machine.compute(WHOLE / 4)
    clock.spend(WHOLE / 4)
    assert clock.rate() == pytest.approx(WHOLE / 2)


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
    pacer = MeasuredPacer(clock, round_start=0.0, round_seconds=4.0, samples=4)
    assert pacer.budget(1, 1.0) is None
    assert machine.t >= 4.0


@given(st.floats(0.0, 0.9), st.floats(0.1, 1.2))
def test_the_budget_is_the_step_that_takes_the_time_there_is(offset, share):
    """At once, whatever the last step was: a step of half the MACs takes more than half of the time."""
    machine = Machine(profile(offset=offset))
    pacer = MeasuredPacer(machine.clock(), round_start=0.0, round_seconds=10 * share, samples=10, margin=0.0)
    budget = pacer.budget(1, 0.0)
    if share <= offset:
        assert budget is None or budget == pytest.approx(0.0, abs=1e-3)
    elif share <= 1:
        assert machine.profile.seconds(PHI * budget) == pytest.approx(share, abs=1e-6)
    else:
        assert budget >= WHOLE / PHI


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
    machine = Machine(profile(offset * step, step, whole), LOADS[load])
    clock = machine.clock()
    done = clock.spend

    def spend(macs: float) -> None:
        machine.compute(macs)
        done(macs)

    monkeypatch.setattr(clock, "spend", spend)
    pacer = make_pacer(job, clock, 0.0, 10.0, samples, MeasuredPacer)
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
    assert found.most_bytes > 4 * sum(shape.numel() for shape in plan.parameters.values())
    assert Profile(**found.state()) == found
    assert found.whole_rate == pytest.approx(found.whole_macs / found.seconds(found.whole_macs))


class Timed(StepTime):
    """A fit that is given: layers cost very different times for their MACs."""

    @classmethod
    def profile(cls, work, seconds=0.0, room=0.0):
        b_and_c = np.random.default_rng(0).uniform(0, 1e-4, 2 * len(work.plan.terms))
        return cls(work.plan, np.array([1e-3, *b_and_c]))


@pytest.mark.parametrize("searched", [False, True], ids=["sorted by MACs", "by another machine's seconds"])
def test_every_row_is_picked_for_the_time_that_is_predicted_for_it(monkeypatch, searched):
    monkeypatch.setattr(measuring, "StepTime", Timed)
    job = federated_job(experiment("training.batch_size=4"))
    plan, rng = job.method.plan, np.random.default_rng(1)
    vectors = [tuple(vector) for vector in rng.uniform(0, 0.5, (20, len(plan.groups))).tolist()]
    table = Lut.of(plan, vectors, "random")
    if searched:
        table = replace(table, rows=tuple(replace(r, seconds=rng.uniform(1, 2)) for r in table.rows))
    job.method.lut = table
    took = dict(
        zip(table.rows, Timed.profile(workload(job))(np.array([r.rates for r in table.rows])), strict=True)
    )
    assert sorted(took.values()) != [took[row] for row in table.rows], "or else there is nothing to see"
    found = calibrate(job)
    for seconds in np.linspace(1.001 * min(took.values()), found.took[-1], 50):
        row = table.pick(found.macs_within(seconds) / (PHI * 4))
        within = [each for each in table.rows if took[each] <= seconds]
        assert row in within or seconds < found.took[1]
        if not searched and within:
            assert row.macs >= max(each.macs for each in within) * (1 - 1e-9)


def test_a_device_that_is_unplugged_in_the_round_trains_no_more_until_it_is_plugged_in():
    class Cable(Caps):
        def paused(self) -> bool:
            return 1.5 < machine.t < 6.0

    machine = Machine(profile())
    pacer = MeasuredPacer(machine.clock(caps=Cable()), round_start=0.0, round_seconds=20.0, samples=3)
    ends = []
    for _ in range(3):
        machine.compute(WHOLE)
        pacer.spend(WHOLE, 1)
        ends.append(machine.t)
    assert ends[0] == pytest.approx(1.0)
    assert ends[1] >= 6.0
    assert ends[2] == pytest.approx(ends[1] + 1.0), "nothing is left to wait for"
