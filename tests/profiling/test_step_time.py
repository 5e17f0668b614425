"""What a step takes is told from a few that were timed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.federated import Optimiser
from leanfleet.nets import NETWORKS, build
from leanfleet.profiling import StepTime, Workload, peak_bytes, step_time
from leanfleet.subnet import SubnetPlan


def workload(name="digits-cnn-small", batch_size=4):
    net = build(name, classes=10, shape=(1, 8, 8), seed=0)
    plan = SubnetPlan.trace(net, torch.zeros(2, 1, 8, 8), NETWORKS[name].keep)
    return Workload(plan, Optimiser(0.1, 0.9), (1, 8, 8), 10, batch_size)


WORK = workload()
PLAN = WORK.plan
VECTORS = step_time._vectors(PLAN)


def rates(counts):
    return np.array([[1 - n / g.channels for n, g in zip(row, PLAN.groups, strict=True)] for row in counts])


def test_vectors_are_all_then_half_then_others_of_the_grid():
    assert len(VECTORS) == 30
    assert VECTORS[0] == [g.channels for g in PLAN.groups]
    assert VECTORS[1] == [min(n for n in g.grid if 2 * n >= g.channels) for g in PLAN.groups]
    assert all(
        n in g.grid and 2 * n >= g.channels for row in VECTORS for n, g in zip(row, PLAN.groups, strict=True)
    )


coefficients = st.lists(st.floats(0, 1), min_size=1 + 2 * len(PLAN.terms), max_size=1 + 2 * len(PLAN.terms))


@settings(max_examples=20)
@given(coefficients, st.floats(0.01, 1))
def test_a_law_of_this_form_is_found(found, offset):
    law = StepTime(PLAN, np.array([offset, *found[1:]]))
    seconds = law(rates(VECTORS))
    fitted = StepTime.fit(PLAN, VECTORS, seconds.tolist())
    unseen = np.random.default_rng(0).uniform(0, 0.5, (20, len(PLAN.groups)))
    assert fitted(unseen) == pytest.approx(law(unseen), rel=1e-3)


@settings(max_examples=20)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=30))
def test_whatever_was_measured_nothing_is_free_and_more_takes_no_less(seconds):
    fitted = StepTime.fit(PLAN, VECTORS[: len(seconds)], seconds)
    assert (fitted.coefficients >= 0).all()
    narrower = fitted(np.linspace(0.5, 0, 6)[:, None].repeat(len(PLAN.groups), 1))
    assert narrower[0] > 0
    assert (np.diff(narrower) >= -1e-12).all()


def test_where_layers_cannot_be_told_apart_it_is_a_line_over_macs():
    few = VECTORS[:4]
    macs = PLAN.macs_of_vectors(rates(few))
    fitted = StepTime.fit(PLAN, few, (0.5 + 1e-6 * macs).tolist())
    unseen = np.random.default_rng(0).uniform(0, 0.5, (20, len(PLAN.groups)))
    spread = PLAN.macs_of_vectors(unseen)
    assert fitted(unseen) == pytest.approx(0.5 + 1e-6 * spread, rel=1e-3)
    assert fitted(np.empty((0, len(PLAN.groups)))).shape == (0,)


class Noted:
    """Stands for the stop watch; notes what is timed."""

    def __init__(self, monkeypatch):
        self.kept = []
        monkeypatch.setattr(step_time, "_time", self)

    def __call__(self, local, batch, kept, end):
        self.kept.append(kept)
        return 1e-3 + 1e-9 * PLAN.macs_of(kept)


def test_all_vectors_are_timed_if_there_is_time(monkeypatch):
    noted = Noted(monkeypatch)
    StepTime.profile(WORK)
    assert [[len(kept[g.name]) for g in PLAN.groups] for kept in noted.kept] == VECTORS


def test_two_are_timed_in_no_time(monkeypatch):
    noted = Noted(monkeypatch)
    fitted = StepTime.profile(WORK, seconds=0.0)
    assert len(noted.kept) == 2
    assert fitted(np.zeros((1, len(PLAN.groups)))) == pytest.approx(1e-3 + 1e-9 * PLAN.macs_of(PLAN.full))


def test_what_has_no_room_is_not_timed(monkeypatch):
    noted = Noted(monkeypatch)
    whole, half = (peak_bytes(WORK, step_time._kept(PLAN, counts)) for counts in VECTORS[:2])
    room = (whole + half) / 2
    StepTime.profile(WORK, room=room)
    assert 2 <= len(noted.kept) < len(VECTORS)
    assert all(peak_bytes(WORK, kept) <= room for kept in noted.kept)
    with pytest.raises(MemoryError, match=r"takes [\d.]+ MB of memory at least, [\d.]+ MB are free$"):
        StepTime.profile(WORK, room=half / 2)


def test_a_cold_step_is_never_the_measure():
    kept = PLAN.full
    local, batch = WORK.local(), WORK.batch()
    steps = []
    descend = local.descend
    local.descend = lambda *given: steps.append(descend(*given))
    assert step_time._time(local, batch, kept, 0.0) > 0
    assert len(steps) == 2
