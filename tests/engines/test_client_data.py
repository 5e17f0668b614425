from __future__ import annotations

import pytest
import torch
from small_split_runs import experiment, job

from leanfleet.data import DataSet, Split
from leanfleet.data import load as load_data
from leanfleet.engines.client_data import accuracy_and_loss, stats
from leanfleet.engines.client_data import test_samples as samples_like
from leanfleet.engines.job import SplitJob, make_job

CPU = torch.device("cpu")


def written(*overrides: str) -> SplitJob:
    """A job on digits by three writers, of which the last has no test samples."""
    data = load_data("digits")
    train, test = data.train, data.test
    by = Split(train.images, train.labels, torch.arange(len(train)) % 3)
    other = Split(test.images, test.labels, torch.arange(len(test)) % 2)
    own = tuple(((0.1 * (i + 1),), (0.5,)) for i in range(3))
    made = make_job(experiment(*overrides), DataSet.of("written", by, other, data.classes, writer_stats=own))
    assert isinstance(made, SplitJob)
    return made


def test_test_samples_weigh_as_a_client_s_classes_do() -> None:
    made = job()
    for client in range(3):
        rows, weights = samples_like(made, client)
        own = torch.bincount(made.data.train.labels[made.parts[client]], minlength=10).double()
        found = torch.zeros(10, dtype=torch.float64).index_add_(0, made.data.test.labels[rows], weights[rows])
        torch.testing.assert_close(found, own / own.sum())
        assert weights.sum() == pytest.approx(1)


def test_by_writer_a_client_has_its_writer_s_test_samples_and_normalisation() -> None:
    made = written("data.partition=writer")
    for client in range(2):
        rows, weights = samples_like(made, client)
        assert (rows % 2 == client).all()
        assert weights[rows].sum() == pytest.approx(1)
        assert stats(made, client) == ((0.1 * (client + 1),), (0.5,))
    # Its writer has none: samples of the classes that it knows.
    assert len(samples_like(made, 2)[0]) == len(made.data.test)


def test_clients_that_share_a_writer_share_its_test_samples() -> None:
    made = written("data.partition=writer(2)", "fleet.devices=6")
    first, second = (samples_like(made, client)[0] for client in (0, 3))
    assert torch.equal(torch.cat([first, second]).sort()[0], torch.arange(0, len(made.data.test), 2))
    assert stats(made, 0) == stats(made, 3)


def test_accuracy_and_loss_weigh_as_samples_do() -> None:
    made = job()
    always = torch.zeros(10).index_fill(0, torch.tensor([int(made.data.train.labels[made.parts[0]][0])]), 9.0)
    accuracy, loss = accuracy_and_loss(made, 0, lambda x: always.expand(len(x), -1), CPU)
    own = made.data.train.labels[made.parts[0]]
    share = float((own == own[0]).double().mean())
    rest = float(always.double().logsumexp(0))
    assert accuracy == pytest.approx(share)
    assert loss == pytest.approx(rest - 9.0 * share, rel=1e-5)
