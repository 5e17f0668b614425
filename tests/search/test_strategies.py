from __future__ import annotations

import numpy as np
import pytest

from leanfleet.search.objectives import Scale, hypervolume
from leanfleet.search.protocols import FAST, PAPER, Protocol
from leanfleet.search.strategies import Chance, Genetic, Modelled, Space
from leanfleet.search.surrogate import Additive

GROUPS = 6
# What each layer costs, and what dropping it loses: the best front drops the dear and harmless layers first.
COST = np.array([9.0, 1.0, 4.0, 2.0, 6.0, 3.0])
HARM = np.array([1.0, 6.0, 2.0, 3.0, 1.0, 5.0])


def cost(rates):
    return 5.0 + (1 - rates) @ COST


SPACE = Space(GROUPS, cost, Scale((5 + COST.sum(), 5 + COST.sum() / 2), (1.0, 0.0)))


def truth(rates):
    return (rates / 0.5) ** 1.5 @ HARM / HARM.sum()


def play(strategy, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    asked = []
    while (question := strategy.ask()) is not None:
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


@pytest.mark.parametrize("protocol", [FAST, PAPER])
def test_a_budget_makes_a_search_smaller(protocol: Protocol):
    assert protocol.within(10**9) is protocol
    for share in (2, 5, 50):
        smaller = protocol.within(protocol.trials // share)
        assert smaller.trials <= protocol.trials // share or smaller.trials < 250
