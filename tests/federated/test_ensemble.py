from __future__ import annotations

from collections import Counter

import pytest
import torch
from fleet_of_batches import batches, method, play, take_part

from leanfleet.federated import METHODS
from leanfleet.nets import vote


def trained(message):
    return {int(name.split(".")[1]) for name in message.tensors}


@pytest.mark.parametrize(("reference", "own", "members"), [(3.99, 1, 3), (4, 1, 4), (0.5, 1, 1)])
def test_there_are_as_many_members_as_the_whole_network_pays_for(reference, own, members):
    cls = METHODS["ensemble"]
    assert cls.members(reference, own, cls.Options()) == members
    assert cls.members(reference, own, cls.Options(count=7)) == 7


@pytest.mark.parametrize(("share", "members"), [(0.5, 1), (1.0, 1), (2.0, 2), (2.9, 2), (3.0, 3), (9.0, 3)])
def test_a_device_gets_as_many_as_its_rate_allows(share, members):
    m, params = method("ensemble")
    assigned, update, pacer, _ = take_part(m, params, 0, share=share)
    assert len(trained(assigned)) == members
    assert pacer.late == (share < 1)
    assert update is not None
    assert trained(update) == trained(assigned)


def test_members_take_turns():
    m, params = method("ensemble")
    given = Counter()
    for round in range(3):
        for device in range(4):
            given.update(trained(take_part(m, params, device, round, share=1.0)[0]))
    assert set(given.values()) == {4}


def test_members_are_averaged_apart():
    m, params = method("ensemble")
    after = play(m, params, 0, (1.0, 1.0))
    changed = {int(n.split(".")[1]) for n in params if not torch.equal(after[n], params[n])}
    assert changed == {0, 1}


def test_a_late_device_sends_what_it_has_done():
    m, params = method("ensemble")
    _, update, pacer, _ = take_part(m, params, 0, share=2.0, true_share=1.0)
    assert pacer.late
    done = list(update.scalars.values())
    assert 0 < sum(done) <= 21
    assert max(done) - min(done) <= 8


def test_the_vote_is_the_mean_of_probabilities():
    logits = [torch.randn(5, 4) for _ in range(3)]
    mean = sum(z.softmax(1) for z in logits) / 3
    assert torch.allclose(vote(logits).exp(), mean, atol=1e-6)


def test_one_member_is_the_small_network():
    m, params = method("ensemble", count=1)
    small, _ = method("small")
    mine, theirs = (take_part(who, params, 0)[1] for who in (m, small))
    for n, p in params.items():
        assert torch.allclose(mine.tensors[n], p + theirs.tensors[n], atol=1e-6)


def test_members_differ_from_the_start():
    m, params = method("ensemble")
    assert not torch.equal(params["members.0.0.weight"], params["members.1.0.weight"])
    x = batches(0)[0][0]
    assert m.logits(m.deployed(params), x).shape == (8, 3)
