"""A budget is kept; on a clock of the test's own, in which short trainings take what they are said to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from leanfleet.data import load as load_data
from leanfleet.errors import LutError
from leanfleet.search import FAST, OPTIMISER, PAPER, search
from leanfleet.search.budget import Budget
from leanfleet.search.proxy import proxy
from leanfleet.search.state import State
from leanfleet.search.trainings import Trainings
from leanfleet.search.trials import Bench, Task
from leanfleet.subnet.lut import Lut

NET = "digits-cnn-small"
# Sizes of the real thing, without pre-training.
QUICK = replace(FAST, start_accuracy=0.0, held_out=60)
QUICK_PAPER = replace(PAPER, start_accuracy=0.0, held_out=60)


@dataclass
class Clock:
    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Trainer:
    """Stands for the pool: every short training takes `seconds`, as many at a time as there are workers."""

    clock: Clock
    seconds: float
    trials: int = 0
    asked: int = 0
    workers: int = 1
    seconds_training: float = 0.0
    seen: list = field(default_factory=list)

    def __call__(self, task, workers):
        self.workers = workers
        self.clock.now += 3.0
        return self

    def begin(self, params):
        pass

    def close(self):
        pass

    def gains(self, rates, seeds, costs, tick, seconds=float("inf"), expected=0.0):
        found = np.full((len(rates), 2), np.nan)
        self.asked += 1
        for number, (vector, seed) in enumerate(zip(rates, seeds, strict=True)):
            if (number // self.workers + 1) * self.seconds > seconds:
                break
            luck = np.random.default_rng(int(seed)).normal(0, 0.02)
            found[number] = 0.3 - 0.4 * (vector**1.5).mean() + luck + 1e-3 * vector[0]
            if number % self.workers == 0:
                self.clock.now += self.seconds
                self.seconds_training += self.seconds
            self.trials += 1
            if np.ptp(vector):
                self.seen.append((vector.tobytes(), int(seed)))
            tick()
        return found


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    for module in ("budget", "trainings", "run", "pretrain"):
        monkeypatch.setattr(f"leanfleet.search.{module}.time", found)
    return found


@pytest.fixture
def go(clock, monkeypatch, tmp_path):
    def call(budget, seconds=1.0, protocol=QUICK, seen=None, **more):
        trainer = Trainer(clock, seconds, seen=[] if seen is None else seen)
        monkeypatch.setattr("leanfleet.search.run.Pool", trainer)
        begun = clock.now
        found = search(NET, "digits", tmp_path / "net.lut", protocol=protocol, budget_seconds=budget, **more)
        return SimpleNamespace(
            lut=found,
            about=found.about,
            seconds=clock.now - begun,
            trials=trainer.trials,
            asked=trainer.asked,
            seen=trainer.seen,
        )

    return call


@pytest.mark.parametrize("protocol", [QUICK, QUICK_PAPER], ids=["fast", "paper"])
@pytest.mark.parametrize("budget", [3.2, 6.0, 10.0, 20.0, 60.0, 200.0, 1000.0])
def test_a_search_ends_on_time_with_a_fine_table(go, budget, protocol, tmp_path):
    found = go(budget, protocol=protocol)
    assert found.seconds <= budget
    # Not much is wasted either: at most a look at the final front.
    assert found.seconds >= min(0.55 * budget, 900)
    assert len(found.lut.rows) >= 40
    assert found.about["cut_short"]
    assert found.about["budget_seconds"] == budget
    assert Lut.load(tmp_path / "net.lut") == found.lut
    measured = [row for row in found.lut.rows if row.f2 is not None]
    assert len(measured) >= (2 if found.about["fresh_seeds"] else 0)


def test_without_a_budget_nothing_is_left_out(go):
    found = go(None)
    assert found.about["cut_short"] == []
    assert found.about["fresh_seeds"] == QUICK.fresh
    assert sum(found.about["questions"]) == pytest.approx(QUICK.trials, abs=30)


@pytest.mark.parametrize("budget", [4.0, 6.0, 60.0])
def test_costs_in_seconds_end_on_time_too(go, clock, budget, monkeypatch):
    asked = []

    def timed(local, batch, kept, end):
        asked.append(kept)
        clock.now += 0.1
        return 1e-3 + 1e-9 * local.step.plan.macs_of(kept) ** 0.9

    monkeypatch.setattr("leanfleet.profiling.step_time._time", timed)
    monkeypatch.setattr("leanfleet.profiling.step_time.time", clock)
    found = go(budget, cost="seconds")
    assert found.seconds <= budget
    # The two extremes in any case, then a tenth of the time.
    assert len(asked) == max(2, min(30, int(budget) + 1))
    assert len(found.lut.rows) >= 40
    assert all(row.seconds > 0 for row in found.lut.rows)


def test_more_time_buys_more_of_everything(go):
    found = [go(budget) for budget in (15.0, 60.0, 240.0, 1000.0)]
    for what in (lambda f: sum(f.about["questions"]), lambda f: f.about["fresh_seeds"], lambda f: f.trials):
        amounts = [what(each) for each in found]
        assert amounts == sorted(amounts)
        assert amounts[0] < amounts[-1]


def test_slow_short_trainings_are_cut_off_where_they_were_underrated(go, clock, monkeypatch):
    trainer_gains = Trainer.gains

    def slower(self, *args, **more):
        self.seconds *= 1.5
        return trainer_gains(self, *args, **more)

    monkeypatch.setattr(Trainer, "gains", slower)
    assert go(60.0, seconds=0.2).seconds <= 60.0


def test_with_too_little_for_anything_the_table_is_the_uniform_one_and_says_so(go):
    found = go(3.5)
    assert found.trials == 0
    assert found.lut.origin == "uniform"
    assert found.about["cut_short"][:2] == ["anchors 0 of 10", "short trainings 0 of 464"]
    assert len(found.lut.rows) == 64
    assert all(np.ptp(row.rates) < 1e-6 and row.f2 is None for row in found.lut.rows)
    assert go(60.0).lut.origin.startswith("search")


@pytest.mark.parametrize(("stop", "step"), [("search", 0), ("search", 1), ("front", 1)])
def test_an_interrupted_search_goes_on_with_a_larger_budget(go, stop, step):
    def interrupt(progress):
        if progress.phase == stop and progress.step == step:
            raise InterruptedError

    small = go(200.0)
    with pytest.raises(InterruptedError):
        go(200.0, watch=interrupt)
    found = go(None, resume=True)
    assert sum(found.about["questions"]) > 3 * sum(small.about["questions"])
    # What was not answered yet is asked as if there had been the time from the start.
    assert (found.about["questions"][0] == QUICK.design) == (step == 0)
    assert sum(found.about["questions"]) == pytest.approx(QUICK.trials, abs=30)
    assert found.about["fresh_seeds"] == QUICK.fresh


@pytest.mark.parametrize("step", [0, 1])
def test_an_interrupted_search_goes_on_with_a_smaller_budget(go, step):
    def interrupt(progress):
        if progress.phase == "search" and progress.step == step:
            raise InterruptedError

    plain = go(200.0)
    with pytest.raises(InterruptedError):
        go(None, watch=interrupt)
    found = go(200.0 if step == 0 else 500.0, resume=True)
    assert found.lut.origin.startswith("search")
    if step == 0:
        assert found.about["seconds"] <= 200
        assert sum(found.about["questions"]) == pytest.approx(sum(plain.about["questions"]), rel=0.1)
    else:
        assert found.about["seconds"] <= 500
        assert all(found.about["questions"][:2])
        assert len(found.about["questions"]) > 1


def test_pre_training_takes_a_quarter_of_the_time_at_most(go, clock, monkeypatch):
    def train(self, params, rates, steps, seed):
        clock.now += 2.0
        return dict(params)

    seen = []
    monkeypatch.setattr(Bench, "train", train)
    begun = clock.now
    found = go(
        100.0,
        protocol=replace(QUICK, start_accuracy=0.99),
        watch=lambda progress: seen.append((progress.phase, progress.seconds_left, clock.now - begun)),
    )
    assert found.seconds <= 100
    assert found.about["cut_short"][0] == "pre-training to 99%"
    assert sum(found.about["questions"]) > 0
    ends = [(left, now) for phase, left, now in seen if phase == "start"]
    assert 20 < ends[-1][1] < 0.25 * 100 + 3 + 2.1
    assert all(left == pytest.approx(100 - now) for left, now in ends)


def test_with_the_same_budget_only_what_is_left_of_it_is_used(go):
    def interrupt(progress):
        if progress.phase == "front" and progress.step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        go(200.0, watch=interrupt)
    found = go(200.0, resume=True)
    assert found.seconds < 120
    assert found.about["seconds"] <= 200


# With 300 seconds there are fewer anchors than the protocol wants.
@pytest.mark.parametrize("budget", [300.0, 1000.0])
@pytest.mark.parametrize("question", [0, 1])
def test_a_question_that_was_under_way_is_asked_again_as_it_was(go, clock, monkeypatch, budget, question):
    monkeypatch.setattr("leanfleet.search.trainings._SAVE_SECONDS", 10.0)

    def interrupt(progress):
        if progress.phase == "search" and progress.step == question and progress.share > 0.9:
            clock.now += 20.0
            raise InterruptedError

    before = []
    with pytest.raises(InterruptedError):
        go(budget, watch=interrupt, seen=before)
    found = go(budget, resume=True)
    assert found.about["questions"][question] == go(budget).about["questions"][question]
    if question == 0:
        # Only what was not saved is done again; later questions repeat some by themselves.
        assert len(set(before) & set(found.seen)) <= 10


def test_many_workers_leave_time_for_a_generation(go):
    found = go(850.0, seconds=8.0, protocol=QUICK_PAPER, workers=8)
    assert sum(found.about["questions"]) >= 192
    assert found.seconds <= 850


def test_many_workers_train_many_anchors_at_once(go):
    def stop(progress):
        asked.append(progress)
        if progress.phase == "search":
            raise InterruptedError

    asked = []
    with pytest.raises(InterruptedError):
        go(None, workers=8, watch=stop)
    # Four pairs, four, and two.
    assert sorted({p.step for p in asked if p.phase == "anchors"}) == [0, 4, 8]


def test_with_fewer_short_trainings_than_workers_each_counts_as_it_would_among_many(clock, tmp_path):
    task = Task(NET, None, proxy(load_data("digits"), 60, 0), OPTIMISER)
    budget, bench = Budget(clock.now, 0.0, 1000.0), Bench(task)
    state, pool = State(tmp_path / "net.lut.partial", {}), Trainer(clock, 8.0, workers=8)
    trainings = Trainings(bench, QUICK, state, pool, budget, lambda progress: None)
    extremes = np.array([[0.0], [0.5]]) * np.ones(len(bench.plan.groups))
    trainings.gains(extremes, np.zeros(2, dtype=np.int64), "anchors", 0, 10)
    assert budget.seconds_per_trial == pytest.approx(8.0 / 8)


@pytest.mark.parametrize(
    ("protocol", "budget"), [(QUICK, 300.0), (QUICK_PAPER, 1400.0)], ids=["fast", "paper"]
)
@pytest.mark.parametrize("phase", ["search", "front"])
def test_an_interruption_moves_no_time_from_the_final_front_to_the_search(go, protocol, budget, phase):
    def interrupt(progress):
        if progress.phase == phase:
            raise InterruptedError

    whole = go(budget, protocol=protocol)
    with pytest.raises(InterruptedError):
        go(budget, protocol=protocol, watch=interrupt)
    found = go(budget, protocol=protocol, resume=True)
    assert found.about["questions"][0] == whole.about["questions"][0]
    assert sum(found.about["questions"]) <= sum(whole.about["questions"])


def test_one_unlucky_pair_of_anchors_is_no_reason_to_end_without_a_table(go, monkeypatch):
    gains = Trainer.gains
    monkeypatch.setattr(Trainer, "gains", lambda self, *args, **more: 0.0 * gains(self, *args, **more))
    found = go(6.0)
    assert found.lut.origin == "uniform"
    assert not found.about["judged"]
    with pytest.raises(LutError, match="the uniform table is as good"):
        go(None)


def test_with_more_time_there_are_more_anchors_where_nothing_was_asked_yet(go, monkeypatch):
    def interrupt(progress):
        if progress.phase == "front":
            raise InterruptedError

    with monkeypatch.context() as patch:
        gains = Trainer.gains
        patch.setattr(Trainer, "gains", lambda self, *args, **more: 0.0 * gains(self, *args, **more))
        with pytest.raises(InterruptedError):
            go(20.0, watch=interrupt, protocol=replace(QUICK, seeds=1))
    found = go(None, resume=True, protocol=replace(QUICK, seeds=1))
    assert found.about["questions"][0] == QUICK.design
    assert found.about["cut_short"] == []


def test_what_was_measured_last_counts_most(clock):
    budget = Budget(clock.now, 0.0, 100.0)
    assert budget.trials() == 100
    budget.took(10, 100.0)
    assert budget.seconds_per_trial == 10
    for _ in range(10):
        budget.took(10, 10.0)
    assert budget.seconds_per_trial == pytest.approx(1.0, rel=0.01)
    clock.now += 40
    assert (budget.spent, budget.left) == (40, 60)
    assert budget.trials(reserve=100) == 0
    assert Budget(clock.now, 0.0, None).trials() == float("inf")
