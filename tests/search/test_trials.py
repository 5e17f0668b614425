from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.data import Batches, load
from leanfleet.federated import Optimiser
from leanfleet.federated.step import Local
from leanfleet.nets import build
from leanfleet.randomness import torch_generator
from leanfleet.search.proxy import proxy
from leanfleet.search.sensitivity import sensitivities
from leanfleet.search.trials import Bench, Pool, Task, measured, nested
from leanfleet.subnet import SubnetPlan

PLAN = SubnetPlan.trace(build("densenet-bc-19"), torch.zeros(2, 3, 32, 32))
RATE = st.floats(0, 0.5)


@pytest.fixture(scope="module")
def task():
    data = proxy(load("digits"), 200, seed=0)
    return Task("digits-cnn-small", None, data, Optimiser(0.1, weight_decay=1e-3), batch_size=16, steps=4)


@given(st.integers(0, 9), st.lists(st.tuples(RATE, RATE), min_size=15, max_size=15))
def test_a_lower_rate_keeps_a_superset(seed, pairs):
    low, high = ([pick(pair) for pair in pairs] for pick in (min, max))
    more, fewer = (nested(PLAN, rates, torch_generator(seed)) for rates in (low, high))
    for name in more:
        assert torch.isin(fewer[name], more[name]).all()


def test_mean_counts_are_those_that_macs_are_reckoned_with():
    rates = PLAN.uniform(0.27)
    group = PLAN.groups[2]
    counts = [len(nested(PLAN, rates, torch_generator(seed))[group.name]) for seed in range(400)]
    assert sum(counts) / len(counts) == pytest.approx(group.moments(0.27)[0], rel=0.03)


def test_short_trainings_repeat_bit_for_bit(task):
    bench = Bench(task)
    bench.begin(bench.params)
    one, two = (bench.gain((0.3, 0.2, 0.1), seed=5) for _ in range(2))
    assert one == two
    assert bench.gain((0.3, 0.2, 0.1), seed=6) != one


def test_no_dropout_is_plain_training(task):
    bench = Bench(task)
    trained = bench.train(bench.params, (0.0, 0.0, 0.0), 4, seed=1)
    net = build("digits-cnn-small", seed=0)
    sgd = torch.optim.SGD(net.parameters(), 0.1, weight_decay=1e-3)
    batches = Batches(
        task.data.train, torch.arange(len(task.data.train)), batch_size=16, epochs=1, mean=task.data.mean,
        std=task.data.std, generator=torch_generator(0, 1, "search batches"),
    )  # fmt: skip
    for (x, y), _ in zip(batches, range(4), strict=False):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        sgd.step()
    for name, p in net.named_parameters():
        assert torch.allclose(trained[name], p, atol=1e-5)


def test_training_gains_and_both_measures_agree(task):
    bench = Bench(task)
    bench.begin(bench.params)
    accuracy, loss = bench.gain((0.0, 0.0, 0.0), seed=0)
    assert accuracy > 0
    assert loss > 0
    trained = bench.train(bench.params, (0.0, 0.0, 0.0), 4, seed=0)
    before, after = bench.measure(bench.params), bench.measure(trained)
    assert (accuracy, loss) == (after[0] - before[0], before[1] - after[1])


def test_workers_find_what_one_process_finds(task):
    rates = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    seeds, costs = np.arange(3), np.array([3.0, 1.0, 2.0])
    found = []
    for workers in (1, 2):
        pool = Pool(task, workers)
        try:
            pool.begin(task.plan()[1])
            found.append(pool.gains(rates, seeds, costs, lambda: None))
            assert measured(found[-1]).all()
            assert pool.seconds_training > 0
        finally:
            pool.close()
    assert np.array_equal(found[0], found[1])


def test_what_time_does_not_allow_is_left_out(task):
    rates, costs = np.full((5, 3), 0.5), np.arange(5.0)
    pool = Pool(task, 1)
    pool.begin(task.plan()[1])
    ticks: list[None] = []
    # How long one takes is not known before the first.
    first = pool.gains(rates, np.arange(5), costs, lambda: ticks.append(None), seconds=0.0)
    assert measured(first).tolist() == [False] * 4 + [True]
    assert len(ticks) == 1
    assert not measured(pool.gains(rates, np.arange(5), costs, lambda: None, seconds=0.0)).any()
    whole = pool.gains(rates, np.arange(5), costs, lambda: None)
    assert measured(whole).all()
    assert whole[4].tolist() == first[4].tolist()


def test_a_network_that_has_diverged_is_worth_as_much_as_guessing(task):
    bench = Bench(task)
    for value in (float("nan"), 1e30):
        accuracy, loss = bench.measure({name: torch.full_like(p, value) for name, p in bench.params.items()})
        assert loss == pytest.approx(np.log(10))
        assert accuracy < 0.3


def test_how_much_every_layer_matters(task):
    bench = Bench(task)
    params = bench.train(bench.params, (0.0, 0.0, 0.0), 30, 0)
    found = sensitivities(bench, params)
    assert found.shape == (3,)
    assert (found >= 0).all()
    assert found.max() > 0
    assert np.array_equal(found, sensitivities(bench, params))
    # Of one layer and mask, by hand: a network whose other layers are whole.
    before = bench.measure(params)[1]
    rises = []
    for luck in range(2):
        kept = nested(bench.plan, (0.0, 0.5, 0.0), torch_generator(task.seed, luck, "sensitivity"))
        assert [len(kept[g.name]) < g.channels for g in bench.plan.groups] == [False, True, False]
        rises.append(bench.measure(params, kept)[1] - before)
    assert found[1] == pytest.approx(max(0.0, sum(rises) / 2))


def dropping():
    """A network that draws from torch's own stream."""
    net = torch.nn
    return net.Sequential(
        net.Conv2d(1, 8, 3, padding=1), net.ReLU(), net.Dropout(0.5), net.Flatten(), net.Linear(512, 10)
    )


def test_networks_with_dropout_of_their_own_are_repeatable_too():
    data = proxy(load("digits"), 200, seed=0)
    task = Task(f"{__name__}:dropping", None, data, Optimiser(0.1), batch_size=16, steps=4)
    bench = Bench(task)
    before = torch.get_rng_state()
    one = bench.train(bench.params, (0.0,), 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before), "the user's own stream is left alone"
    torch.rand(3)
    two = bench.train(bench.params, (0.0,), 4, seed=1)
    assert all(torch.equal(p, two[name]) for name, p in one.items())


def test_no_short_training_begins_that_is_expected_to_take_too_long(task):
    pool = Pool(task, 1)
    try:
        pool.begin(Bench(task).params)
        given = np.zeros((2, 3)), np.arange(2), np.ones(2), lambda: None
        assert not measured(pool.gains(*given, seconds=5.0, expected=10.0)).any()
        assert measured(pool.gains(*given, seconds=1000.0, expected=10.0)).all()
    finally:
        pool.close()


def test_as_many_steps_as_asked_for_on_few_images():
    data = load("digits")
    few = replace(data, train=data.train.select(torch.arange(71)))
    task = Task("digits-cnn-small", None, few, Optimiser(0.1), batch_size=64, steps=6)
    bench = Bench(task)
    done = []
    descend = Local.descend
    Local.descend = lambda self, *given: done.append(1) or descend(self, *given)  # type: ignore[method-assign]
    try:
        bench.train(bench.params, (0.0, 0.0, 0.0), 6, seed=0)
    finally:
        Local.descend = descend  # type: ignore[method-assign]
    assert len(done) == 6
