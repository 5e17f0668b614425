from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leanfleet.data import load
from leanfleet.search import FAST, OPTIMISER, PAPER
from leanfleet.search.budget import Budget
from leanfleet.search.objectives import Scale
from leanfleet.search.proxy import proxy
from leanfleet.search.state import State
from leanfleet.search.strategies import Ask, Space
from leanfleet.search.trainings import Progress, Trainings
from leanfleet.search.trials import Bench, Task

BENCH = Bench(Task("digits-cnn-small", None, proxy(load("digits"), 60, 0), OPTIMISER, 16, 4))
GROUPS = len(BENCH.plan.groups)
# Gains from 1 (no dropout) to 0 (half of everything), those of ten anchors with a little luck.
LUCK = np.random.default_rng(0).normal(0, 0.01, (10, 2))
ANCHORS = [np.array([[1 + a, 1 + a], [0 + b, 0 + b]]) for a, b in LUCK]
SPACE = Space(GROUPS, lambda rates: 1 - rates.mean(axis=1), Scale((1.0, 0.5), (1.0, 0.0)))


class Pool:
    """Gains fall with the first rate alone; every short training is noted."""

    def __init__(self):
        self.workers, self.seconds_training, self.asked = 2, 0.0, []

    def gains(self, rates, seeds, costs, tick, seconds=float("inf"), expected=0.0):
        self.asked.append((rates, seeds))
        for _ in rates:
            tick()
        return np.repeat(1 - 2 * rates[:, :1], 2, axis=1)


def make(protocol):
    pool, seen = Pool(), []
    state = State(Path("none"), {}, anchors=list(ANCHORS))
    return Trainings(BENCH, protocol, state, pool, Budget(0.0, 0.0, None), seen.append), pool, seen, state


def question(*first, seeds=3):
    rates = np.zeros((len(first), GROUPS))
    rates[:, 0] = first
    return Ask(rates, seeds)


def test_clearly_beaten_vectors_get_no_more_than_one_seed():
    trainings, pool, _, state = make(replace(PAPER, screening=True))
    # Of the first three, what costs less loses more. The last one costs more than the third, and loses more.
    asked = question(0.0, 0.1, 0.3, 0.4)
    asked.rates[2, 1:] = 0.4
    gains = trainings.answer(SPACE, asked, 0, 0.0)
    assert gains.shape == (12, 2)
    assert np.isnan(gains).any(axis=1).tolist() == [False] * 9 + [False, True, True]
    assert [len(rates) for rates, _ in pool.asked] == [4, 6]
    assert state.training_samples == 10 * 4 * 16
    assert trainings.f2(SPACE.scale, asked, gains) == pytest.approx([0.0, 0.2, 0.6, 0.8])


def test_vectors_that_may_be_as_good_get_all_seeds():
    trainings, pool, _, _ = make(replace(PAPER, screening=True))
    asked = question(0.2, 0.2 + 1e-4)
    asked.rates[0, 1:] = 0.1
    assert not np.isnan(trainings.answer(SPACE, asked, 0, 0.0)).any()
    assert [len(rates) for rates, _ in pool.asked] == [2, 4]


def test_common_random_numbers_are_the_anchors_seeds():
    trainings, pool, seen, _ = make(FAST)
    trainings.answer(SPACE, question(*[0.1] * 12, seeds=1), 0, 0.0)
    trainings.answer(SPACE, question(0.2, 0.3), 1, 0.0)
    assert [seeds.tolist() for _, seeds in pool.asked] == [[*range(10), 0, 1], [0, 1, 2, 0, 1, 2]]
    assert isinstance(seen[-1], Progress)
    assert (seen[-1].phase, seen[-1].step, seen[-1].steps, seen[-1].share) == ("search", 1, 3, 1.0)


def test_seeds_of_their_own_are_never_used_twice():
    trainings, pool, _, state = make(PAPER)
    for asked in range(2):
        state.told.append(trainings.answer(SPACE, question(0.1, 0.2), asked, 0.0))
    seeds = np.concatenate([seeds for _, seeds in pool.asked])
    assert len(set(seeds.tolist())) == len(seeds) == 12


def test_the_second_objective_is_the_mean_of_what_is_there():
    trainings, _, _, _ = make(PAPER)
    gains = np.repeat([[0.9], [np.nan], [0.5], [np.nan], [np.nan], [np.nan]], 2, axis=1)
    f2 = trainings.f2(SPACE.scale, question(0.1, 0.2), gains)
    assert f2[0] == pytest.approx(0.3)
    assert np.isnan(f2[1])
    trainings.note(SPACE.f1(question(0.1, 0.2).rates), f2)
    assert trainings.hypervolume == pytest.approx((1.1 - SPACE.f1(question(0.1).rates)[0]) * (1.1 - 0.3))


def test_few_anchors_mean_few_seeds():
    trainings, _, _, state = make(FAST)
    del state.anchors[2:]
    assert trainings.protocol.seeds == 2
    assert make(PAPER)[0].protocol == PAPER
