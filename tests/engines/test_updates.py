"""Updates before they are added."""

from __future__ import annotations

import pytest
import torch

from leanfleet.engines.job import federated_job
from leanfleet.engines.updates import Assigned, UsualNorms, accept, check_macs, fold_in
from leanfleet.errors import WireError
from leanfleet.federated import Report
from leanfleet.ledger import PHI
from leanfleet.wire import Message, encode
from tiny_experiment import experiment


def setting(name):
    """A method, its start, a task and an update that moves every number by 0.001."""
    job = federated_job(experiment(f"method.name={name}"))
    method, report = job.method, Report(100, 1e9)
    params = method.begin({n: p.detach().clone() for n, p in job.net.named_parameters()})
    message = method.assign(params, report, 0, torch.Generator().manual_seed(0))
    expected, scalars = method.expects(message)
    base = {n: message.tensors[n] for n in expected} if name == "heterofl" else {}
    tensors = {n: base.get(n, torch.zeros(shape)) + 0.001 for n, (_, shape) in expected.items()}
    update = Message(tensors, dict.fromkeys(scalars, 50.0))
    return method, params, Assigned(0, report, message, 0), update


def moved(method, params, total):
    after = method.deployed(method.finish(params, total))
    before = method.deployed(params)
    return {n: after[n] - before[n] for n in after}


def length(tensors):
    return torch.sqrt(sum(t.double().square().sum() for t in tensors.values()))


@pytest.mark.parametrize("name", ["fedavg", "heterofl"])
def test_a_change_that_is_too_long_is_shortened_to_the_clip_norm(name):
    method, params, task, update = setting(name)
    total = method.empty(params)
    assert accept(method, params, total, task, encode(update), clip_norm=0.01) == ""
    # What a level does not hold is not in use: compared is what was trained.
    base = task.message.tensors if name == "heterofl" else {}
    if name == "fedavg":
        assert length(moved(method, params, total)) == pytest.approx(0.01, rel=1e-4)
    else:
        after = method.finish(params, total)
        kept, _ = method.opened(task.message)
        trained = method.plan.pack({n: after[n] for n in method.plan.parameters}, kept)
        assert length({n: trained[n] - base[n] for n in trained}) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["fedavg", "heterofl"])
def test_a_short_change_is_left_alone(name):
    method, params, task, update = setting(name)
    clipped, plain = method.empty(params), method.empty(params)
    assert accept(method, params, clipped, task, encode(update), clip_norm=1e3) == ""
    assert accept(method, params, plain, task, encode(update)) == ""
    one, two = method.finish(params, clipped), method.finish(params, plain)
    assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("name", ["fedavg", "heterofl"])
def test_a_change_longer_than_the_network_itself_is_refused(name):
    method, params, task, update = setting(name)
    absurd = Message({n: t + 1e6 for n, t in update.tensors.items()}, update.scalars)
    total = method.empty(params)
    assert "moves the network by" in accept(method, params, total, task, encode(absurd))
    after = method.finish(params, total)
    assert all(torch.equal(after[n], params[n]) for n in params)


def test_a_longer_message_than_there_can_be_is_not_even_read():
    method, params, task, update = setting("fedavg")
    padded = encode(Message({**update.tensors, "more": torch.zeros(10**6)}, update.scalars))
    assert "more than the" in accept(method, params, method.empty(params), task, padded)


def test_macs_are_bounded_by_the_whole_network_over_the_registered_samples():
    method, _, task, _ = setting("distreal")
    most = PHI * method.plan.macs_of(method.plan.full) * 100
    check_macs(method, task.report, most)
    with pytest.raises(WireError, match="is the most there can be"):
        check_macs(method, task.report, most * 1.01)


def test_with_self_distillation_a_step_costs_two_widths():
    job = federated_job(experiment("method.name=fjord", "method.distil=true"))
    method, report = job.method, Report(100, 1e9)
    check_macs(method, report, PHI * (method.macs[0] + method.macs[1]) * 100)
    with pytest.raises(WireError, match="is the most there can be"):
        check_macs(method, report, PHI * 2.01 * method.macs[0] * 100)


def test_a_change_far_longer_than_is_usual_is_refused():
    method, params, task, update = setting("fedavg")
    norms, total = UsualNorms(), method.empty(params)
    longer = encode(Message({n: 11 * t for n, t in update.tensors.items()}, update.scalars))
    # Before enough is known nothing is unusual.
    assert accept(method, params, total, task, longer, norms=norms) == ""
    for _ in range(5):
        assert accept(method, params, total, task, encode(update), norms=norms) == ""
    assert "is usual" in accept(method, params, total, task, longer, norms=norms)
    assert accept(method, params, total, task, encode(update), norms=norms) == ""


@pytest.mark.parametrize("name", ["fedavg", "heterofl"])
def test_a_stale_update_counts_by_its_weight(name):
    method, params, task, update = setting(name)
    base = task.message.tensors if name == "heterofl" else {}
    other = Message(
        {n: 3 * (t - base.get(n, 0)) + base.get(n, 0) for n, t in update.tensors.items()}, update.scalars
    )
    total, late = method.empty(params), method.empty(params)
    assert accept(method, params, total, task, encode(update)) == ""
    assert accept(method, params, late, task, encode(other)) == ""
    fold_in(total, late, 0.5)
    after = method.finish(params, total)
    kept = method.opened(task.message)[0] if name == "heterofl" else method.plan.full
    trained = method.plan.pack({n: after[n] for n in method.plan.parameters}, kept)
    before = method.plan.pack({n: params[n] for n in method.plan.parameters}, kept)
    wanted = torch.tensor((0.001 + 0.5 * 0.003) / 1.5)
    for n in trained:
        assert torch.allclose(trained[n] - before[n], wanted, rtol=1e-2, atol=1e-6)
