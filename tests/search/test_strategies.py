from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.nets import build
from leanfleet.search.modelled import Modelled, careful, descent
from leanfleet.search.objectives import Scale, hypervolume
from leanfleet.search.protocols import FAST, PAPER
from leanfleet.search.strategies import Chance, Genetic, Space, grid_rates, typical
from leanfleet.search.surrogate import Additive
from leanfleet.subnet import SubnetPlan

GROUPS = 6
# What each layer costs, and what dropping it loses: the best front drops the dear and harmless layers first.
COST = np.array([9.0, 1.0, 4.0, 2.0, 6.0, 3.0])
HARM = np.array([1.0, 6.0, 2.0, 3.0, 1.0, 5.0])


def cost(rates):
    return 5.0 + (1 - rates) @ COST


SPACE = Space(GROUPS, cost, Scale((5 + COST.sum(), 5 + COST.sum() / 2), (1.0, 0.0)))


def truth(rates):
    return (rates / 0.5) ** 1.5 @ HARM / HARM.sum()


def play(strategy, noise=0.0, seed=0, trials=math.inf):
    """Answer all questions that so many short trainings allow."""
    generator = np.random.default_rng(seed)
    asked = []
    while (question := strategy.ask(trials)) is not None:
        trials -= len(question.rates) * question.seeds
        asked.append(question)
        spread = noise / question.seeds**0.5
        strategy.tell(truth(question.rates) + generator.normal(0, spread, len(question.rates)))
    return asked


def volume(rates):
    return hypervolume(SPACE.f1(rates), truth(rates))


def line():
    return volume(np.linspace(0, 0.5, 64)[:, None].repeat(GROUPS, 1))


def make(kind, **more):
    return kind(SPACE, population=24, generations=20, seeds=3, seed=0, **more)


def test_the_first_population_has_the_extremes_and_all_rates_stay_inside():
    for kind in (Genetic, Chance):
        asked = play(make(kind))
        assert len(asked) == 21
        first = asked[0].rates.tolist()
        assert [0.0] * GROUPS in first
        assert [0.5] * GROUPS in first
        for question in asked:
            assert question.rates.shape == (24, GROUPS)
            assert question.seeds == 3
            assert (question.rates >= 0).all()
            assert (question.rates <= 0.5).all()


def test_evolution_beats_chance_and_one_rate_for_all():
    genetic, chance = make(Genetic), make(Chance)
    play(genetic)
    play(chance)
    assert volume(genetic.front()) > volume(chance.front()) + 0.02
    assert volume(genetic.front()) > line() + 0.05


def test_a_model_needs_far_fewer_trials():
    genetic = Genetic(SPACE, population=64, generations=50, seeds=3, seed=0)
    modelled = Modelled(SPACE, population=64, design=224, refits=(40, 40), seeds=3, seed=0)
    trials = [sum(len(q.rates) * q.seeds for q in play(s, noise=0.1)) for s in (genetic, modelled)]
    assert trials[0] == 51 * 64 * 3
    assert trials[1] * 20 <= trials[0]
    assert volume(modelled.front()) >= 0.99 * volume(genetic.front())


@pytest.mark.parametrize("kind", [Genetic, Chance])
def test_the_same_answers_bring_the_same_questions(kind):
    one, two = (play(make(kind), noise=0.1) for _ in range(2))
    assert all(np.array_equal(a.rates, b.rates) for a, b in zip(one, two, strict=True))


def test_a_modelled_search_repeats_too():
    def asked():
        return play(Modelled(SPACE, population=16, design=40, refits=(8, 8), seeds=2, seed=3), noise=0.1)

    one, two = asked(), asked()
    assert [len(q.rates) for q in one] == [40, 8, 8]
    assert all(np.array_equal(a.rates, b.rates) for a, b in zip(one, two, strict=True))


def test_the_model_finds_an_additive_truth():
    rates = np.random.default_rng(0).uniform(0, 0.5, (400, GROUPS))
    linear, square = HARM / 20, HARM[::-1] / 30
    f2 = rates @ linear + rates**2 @ square
    model = Additive.fit(rates, f2, np.ones(400), 0.5)
    assert model(rates) == pytest.approx(f2, abs=0.02)
    assert (model.linear >= 0).all()
    assert (model.square >= 0).all()


def test_without_data_every_layer_costs_the_same():
    model = Additive.fit(np.zeros((1, GROUPS)), np.zeros(1), np.ones(1), 0.5)
    assert model(np.full((1, GROUPS), 0.5)) == pytest.approx([1.0])
    assert np.ptp(model(np.eye(GROUPS) / 2)) < 1e-9


def test_protocols_take_what_the_specification_says():
    assert PAPER.trials * PAPER.steps * PAPER.batch_size == 40_108_032
    assert FAST.trials * 20 <= PAPER.trials
    assert (PAPER.population, PAPER.generations, PAPER.seeds, PAPER.steps, PAPER.batch_size) == (
        64,
        50,
        3,
        64,
        64,
    )


def modelled(population=64, seed=0, **more):
    return Modelled(SPACE, population=population, design=224, refits=(40, 40), seeds=3, seed=seed, **more)


@given(st.integers(0, 600))
@settings(max_examples=15, deadline=None)
def test_no_more_is_asked_than_time_allows(trials):
    strategy = modelled()
    asked = play(strategy, trials=trials)
    used = sum(len(question.rates) * question.seeds for question in asked)
    assert used <= min(trials, FAST.trials)
    # Little is left over, and the design keeps its share of a small budget.
    assert used >= min(trials, FAST.trials) - 30
    if asked:
        assert len(asked[0].rates) == pytest.approx(max(12, 224 * min(1, trials / FAST.trials)), abs=2)
    front = strategy.front()
    assert [0.0] * GROUPS in front.tolist()
    assert [0.5] * GROUPS in front.tolist()


@pytest.mark.parametrize("kind", [Genetic, Chance])
def test_no_generation_begins_that_does_not_fit(kind):
    strategy = make(kind)
    assert len(play(strategy, trials=3 * 72 - 1)) == 2
    assert strategy.ask(71) is None
    nothing = make(kind)
    assert nothing.ask(71) is None
    assert nothing.front().tolist() == SPACE.extremes.tolist()


def test_with_more_time_a_modelled_search_goes_on():
    short, whole = modelled(), modelled()
    first = play(short, trials=100)
    more = play(short)
    assert sum(len(q.rates) * q.seeds for q in first + more) == pytest.approx(FAST.trials, abs=30)
    design = [q.rates for q in first + more if q.seeds == 1]
    assert np.array_equal(np.concatenate(design), whole.ask(math.inf).rates)


@pytest.mark.parametrize("kind", [Chance, Modelled])
def test_what_was_not_measured_is_not_believed(kind):
    strategy = make(kind) if kind is Chance else modelled()
    question = strategy.ask(math.inf)
    f2 = truth(question.rates)
    f2[5:] = np.nan
    strategy.tell(f2)
    assert strategy.needs_all is False
    known = {tuple(vector) for vector in question.rates[:5].tolist()} | {(0.0,) * GROUPS, (0.5,) * GROUPS}
    front = strategy.front()
    assert np.isfinite(front).all()
    assert kind is Modelled or {tuple(vector) for vector in front.tolist()} <= known


@pytest.mark.parametrize("kind", [Genetic, Chance])
def test_a_seeded_population_has_vectors_that_need_no_search(kind):
    rates = make(kind, known=partial(typical, SPACE)).ask(math.inf).rates
    assert len(rates) == 24
    assert rates[:2].tolist() == SPACE.extremes.tolist()
    one, rising, falling = rates[2:5], rates[5:8], rates[8:11]
    assert (np.ptp(one, axis=1) < 1e-12).all()
    assert (np.diff(rising, axis=1) >= 0).all()
    assert (np.ptp(rising, axis=1) > 0).all()
    assert np.array_equal(falling, rising[:, ::-1])
    assert not np.array_equal(make(kind).ask(math.inf).rates, rates)


def test_a_seeded_design_begins_with_them():
    rates = modelled(known=partial(typical, SPACE)).ask(math.inf).rates
    assert len(rates) == 224
    assert (np.ptp(rates[:14], axis=1) < 1e-12).all()
    assert np.array_equal(rates[42:], modelled().ask(math.inf).rates[:182])


def test_careful_vectors_drop_what_is_dear_and_harmless_first():
    found = careful(HARM, SPACE, 12)
    assert len(found) == 12
    assert (found >= 0).all()
    assert (found <= 0.5).all()
    # Per cost saved, group 0 harms least and group 1 most.
    assert (found[:, 0] >= found[:, 1]).all()
    assert found[:, 0].max() > found[:, 1].min() + 0.3
    # With the harm known they are a front by themselves.
    assert volume(np.concatenate([SPACE.extremes, found])) > line() + 0.02


GRID = Space(GROUPS, cost, SPACE.scale, tuple(np.array([0.0, 0.25, 0.5]) for _ in range(GROUPS)))


@pytest.mark.parametrize("strategy", [PAPER, replace(PAPER, strategy="chance"), FAST])
def test_integer_genes_stay_on_the_grid(strategy):
    made = replace(strategy, population=16, generations=3, seeded="typical").make(GRID, 0)
    asked = play(made)
    rates = np.concatenate([question.rates for question in asked] + [made.front()])
    assert np.isin(rates, [0.0, 0.25, 0.5]).all()
    assert len(np.unique(rates, axis=0)) > 8


def test_a_grid_of_few_vectors_ends_the_search():
    """NSGA-II finds nothing new when all have been tried."""
    few = replace(GRID, groups=2, grid=GRID.grid[:2], cost=lambda rates: 1 - rates.mean(axis=1))
    strategy = replace(PAPER, population=16, generations=20).make(few, 0)
    asked = 0
    while (question := strategy.ask(math.inf)) is not None:
        strategy.tell(question.rates.sum(axis=1))
        asked += 1
    assert 0 < asked < 20
    assert len(strategy.front()) >= 2


def test_grid_rates_keep_the_counts_of_the_grid():
    plan = SubnetPlan.trace(build("digits-cnn"), torch.zeros(2, 1, 8, 8), ("hidden",))
    for group, rates in zip(plan.groups, grid_rates(plan.groups), strict=True):
        counts = [group.neighbours(rate) for rate in rates.tolist()]
        assert all(low == high for _, low, high in counts)
        assert rates.tolist() == sorted(rates.tolist())
        assert (rates[0], rates[-1]) == (0.0, 0.5)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_descent_passes_ever_cheaper_vectors_down_to_the_last(seed):
    generator = np.random.default_rng(seed)
    model = Additive(*generator.uniform(0, 1, (2, GROUPS)))
    passed = descent(SPACE, model)
    assert passed[0].tolist() == [0.0] * GROUPS
    assert passed[-1].tolist() == [0.5] * GROUPS
    assert (np.diff(passed, axis=0) >= 0).all()
    assert (np.diff(SPACE.f1(passed)) < 0).all()
    assert (np.diff(model(passed)) >= 0).all()


def test_a_descent_finds_what_evolution_finds_on_the_same_model():
    model = Additive(HARM / 20, HARM / 10)

    def worth(rates):
        return hypervolume(SPACE.f1(rates), model(rates) / model(SPACE.extremes[1:])[0])

    genetic = Genetic(SPACE, population=64, generations=60, seeds=1, seed=0)
    while (question := genetic.ask(math.inf)) is not None:
        genetic.tell(model(question.rates) / model(SPACE.extremes[1:])[0])
    assert worth(descent(SPACE, model)) >= worth(genetic.front()) - 1e-3
