from __future__ import annotations

import pytest
import torch
from fleet_of_batches import method, play, take_part

from leanfleet.wire import encode


@pytest.mark.parametrize("share", [0.26, 0.4, 0.55, 0.7, 0.99])
def test_the_polynomial_fits_the_round_where_the_square_root_would_not(share):
    m, params = method("federated-dropout")
    _, update, pacer, _ = take_part(m, params, 0, share=share)
    assert not pacer.late
    assert update is not None
    assert pacer.macs <= pacer.available_macs * (1 + 1e-9)
    root = m.plan.macs(m.plan.uniform(1 - share**0.5))
    assert root > share * m.plan.macs(m.plan.uniform(0.0))


def test_a_lost_ulp_costs_no_channel():
    m, params = method("federated-dropout")
    assigned, _, _, _ = take_part(m, params, 0, share=1.0)
    assert len(encode(assigned)) > len(encode(type(assigned)(params, assigned.scalars)))  # whole, and its ids


def test_the_downlink_is_smaller():
    m, params = method("federated-dropout")
    sizes = [len(encode(take_part(m, params, 0, share=share)[0])) for share in (0.3, 0.6, 1.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.6 * sizes[-1]


def test_only_holders_vote():
    m, params = method("federated-dropout")
    assigned, update, _, _ = take_part(m, params, 0, share=0.3)
    total = m.empty(params)
    m.accumulate(total, assigned, update)
    after = m.finish(params, total)
    kept = m.plan.keep(
        {n.removeprefix("kept/"): t.long() for n, t in assigned.tensors.items() if "kept/" in n}
    )
    rest = {n: torch.ones_like(p, dtype=torch.bool) for n, p in params.items()}
    m.plan.unpack_(rest, m.plan.pack({n: torch.zeros_like(r) for n, r in rest.items()}, kept), kept)
    assert any(bool(r.any()) for r in rest.values())
    assert all(torch.equal(after[n][r], params[n][r]) for n, r in rest.items())
    packed = m.plan.pack(after, kept)
    assert all(torch.equal(packed[n], update.tensors[n]) for n in packed)


def test_full_means_everyone_holds_everything():
    m, params = method("federated-dropout")
    after = play(m, params, 0, (1.0, 1.0))
    updates = [take_part(m, params, device)[1].tensors for device in range(2)]
    for name, value in after.items():
        mean = (updates[0][name].double() + updates[1][name].double()) / 2
        assert torch.allclose(value.double(), mean, atol=1e-7)
