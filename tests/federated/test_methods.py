"""What every federated method has to pass."""

from __future__ import annotations

import pytest
import torch
from fleet_of_batches import batches, net, play, take_part
from fleet_of_batches import method as named
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import WireError
from leanfleet.federated import METHODS, Report
from leanfleet.nets import VotingEnsemble
from leanfleet.randomness import torch_generator
from leanfleet.wire import Message, decode, encode

VARIANTS = {
    **{name: {} for name in METHODS},
    "distreal coverage": {"average": "coverage"},
    "distreal cycled": {"masks": "cycled"},
    "distreal round": {"react": "round"},
    "distreal bernoulli": {"drop": "bernoulli"},
    "federated-dropout scaled": {"scale": True},
    "heterofl nearest": {"fit": "nearest"},
    "heterofl masked": {"mask_labels": True},
    "fjord distilled": {"distil": True},
    "fedrolex plain": {"scale": False},
}
pytestmark = pytest.mark.parametrize("name", VARIANTS)
SHARES = (0.3, 0.5, 0.8, 1.0)


def method(variant):
    return named(variant.split()[0], **VARIANTS[variant])


def test_a_round_changes_the_parameters_and_keeps_their_form(name):
    m, params = method(name)
    before = {n: p.clone() for n, p in params.items()}
    after = play(m, params, 0, SHARES)
    assert {n: (p.shape, p.dtype) for n, p in after.items()} == {
        n: (p.shape, p.dtype) for n, p in before.items()
    }
    assert any(not torch.equal(after[n], before[n]) for n in before)
    assert all(torch.equal(params[n], before[n]) for n in before), (
        "assign or train wrote to the server's parameters"
    )


def test_a_round_is_repeatable_bit_for_bit(name):
    one, two = (play(*method(name), 3, SHARES) for _ in range(2))
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_training_lowers_the_loss_of_the_whole_network(name):
    m, params = method(name)

    def loss(values):
        values = m.deployed(values)
        with torch.no_grad():
            return sum(
                float(torch.nn.functional.cross_entropy(m.logits(values, x), y))
                for device in range(4)
                for x, y in batches(device)
            )

    first = loss(params)
    for round in range(40):
        params = play(m, params, round, SHARES)
    assert loss(params) < 0.9 * first


def test_sums_merge_as_if_one_worker_had_them_all(name):
    m, params = method(name)
    parts = [take_part(m, params, device, share=share) for device, share in enumerate(SHARES)]
    whole, left, right = (m.empty(params) for _ in range(3))
    for index, (assigned, update, _, _) in enumerate(parts):
        if update is None:
            continue
        m.accumulate(whole, assigned, update)
        m.accumulate(left if index < 2 else right, assigned, update)
    left.merge(type(right).from_tensors(decode(encode(Message(right.tensors()))).tensors))
    one, two = m.finish(params, whole), m.finish(params, left)
    assert all(torch.allclose(one[n], two[n], rtol=0, atol=1e-6) for n in one)


def test_no_report_leaves_the_parameters_bit_for_bit(name):
    m, params = method(name)
    after = m.finish(params, m.empty(params))
    assert all(torch.equal(after[n], params[n]) for n in params)


def test_the_learning_rate_travels(name):
    m, params = method(name)
    report = Report(21, 1e9)
    assigned = m.assign(params, report, 0, torch_generator("a"))
    assert assigned.scalars["lr"] == 0.1


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_clock_is_charged_what_torch_counts(name, share):
    m, params = method(name)
    with FlopCounterMode(display=False) as counter:
        _, _, pacer, _ = take_part(m, params, 0, share=share, true_share=10.0 if m.deadline else share)
    forward_and_backward = counter.get_total_flops() / 2
    # torch leaves out the first layer's input gradient; PHI does not.
    assert 0.8 * pacer.macs < forward_and_backward <= pacer.macs


def test_a_device_that_claims_more_than_it_can_is_refused(name):
    m, params = method(name)
    _, update, _, report = take_part(m, params, 0)
    for scalar in update.scalars:
        liar = Message(update.tensors, {**update.scalars, scalar: 2.0 * m.most_weight(report)})
        with pytest.raises(WireError, match=scalar):
            m.check(report, liar)


def test_a_slow_device_is_late_unless_the_method_knows_no_deadline(name):
    m, params = method(name)
    _, update, pacer, _ = take_part(m, params, 0, share=1.0, true_share=0.02)
    if m.deadline:
        assert pacer.late
        assert update is None
        assert pacer.macs <= pacer.available_macs * (1 + 1e-9)
    else:
        assert not pacer.late
        assert update is not None


def test_an_update_with_nan_or_another_shape_is_refused(name):
    m, params = method(name)
    assigned, update, _, _ = take_part(m, params, 0)
    tensor = next(name for name, t in update.tensors.items() if t.is_floating_point())
    broken = {**update.tensors, tensor: torch.full_like(update.tensors[tensor], torch.nan)}
    with pytest.raises(WireError, match=tensor):
        decode(encode(Message(broken, update.scalars)), *m.expects(assigned))
    broken = {**update.tensors, tensor: update.tensors[tensor][:1].clone()}
    with pytest.raises(WireError, match=tensor):
        decode(encode(Message(broken, update.scalars)), *m.expects(assigned))


def test_expected_work_is_what_a_steady_device_spends(name):
    m, params = method(name)
    for share in (0.4, 1.0):
        parts = [take_part(m, params, 0, round, share=share) for round in range(12)]
        spent = sum(pacer.macs for _, _, pacer, _ in parts) / len(parts)
        assert m.work(parts[0][3]) == pytest.approx(spent, rel=0.25)


def test_what_is_deployed_is_a_plain_module(name):
    m, params = method(name)
    members = [net(seed) for seed in range(m.setting.members)]
    module = VotingEnsemble(members) if len(members) > 1 else members[0]
    after = m.deployed(play(m, params, 0, SHARES))
    assert set(after) == {n for n, _ in module.named_parameters()}
    module.load_state_dict(after, strict=False)
    x = torch.randn(9, 2, 6, 6, generator=torch_generator("x"))
    with torch.no_grad():
        # In training mode norms use the batch, as evaluation A does.
        assert torch.allclose(module.train()(x).log_softmax(1), m.logits(after, x).log_softmax(1), atol=1e-5)
