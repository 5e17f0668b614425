from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from leanfleet.nets import build
from leanfleet.split.masks import effective, fill_gradients_, initial, of_unseen, penalty, row, soft

CLIENTS = 3
KINDS = ("weight", "channel")


def server_half(classes: int = 5) -> nn.Module:
    net = build("lenet", classes=classes)
    assert isinstance(net, nn.Sequential)
    return net[1:]


def small() -> nn.Module:
    parts = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*parts).double()


def params_of(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_parameters())


def fresh(net: nn.Module, kind: str, clients: int = CLIENTS) -> dict[str, Tensor]:
    return initial(params_of(net), clients, kind, torch.Generator().manual_seed(0))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=generator), torch.arange(6) % 3


def served(net: nn.Module, logits: dict[str, Tensor], kind: str, seed: int = 0) -> Tensor:
    """Cross entropy of a client with these logits."""
    x, y = batch(seed)
    weights = effective(params_of(net), soft(logits), kind)
    return F.cross_entropy(functional_call(net, weights, (x,)), y)


def test_sizes_at_the_default_cut() -> None:
    params = params_of(server_half())
    sizes = {
        kind: {name: v.shape for name, v in initial(params, 1, kind, torch.Generator()).items()}
        for kind in KINDS
    }
    assert sizes["weight"] == {name: (1, *p.shape) for name, p in params.items()}
    assert sum(s.numel() for s in sizes["weight"].values()) == 2_988_855
    assert list(sizes["channel"].values()) == [(1, 50), (1, 800), (1, 500), (1, 5)]
    assert sum(s.numel() for s in sizes["channel"].values()) == 1_355


def test_start_at_the_default_cut() -> None:
    logits = fresh(server_half(), "weight", 5)
    masks = torch.cat([v.sigmoid().flatten() for v in logits.values()])
    assert masks.mean().item() == pytest.approx(0.500, abs=1e-3)
    assert masks.std().item() == pytest.approx(0.208, abs=1e-3)
    assert 1e-3 * penalty(logits).item() == pytest.approx(7470, abs=5)


@pytest.mark.parametrize("kind", KINDS)
def test_start_is_the_generators_and_has_the_parameters_type(kind: str) -> None:
    net = small()
    logits = fresh(net, kind)
    again = fresh(net, kind)
    assert all(torch.equal(v, again[name]) for name, v in logits.items())
    assert all(v.dtype == torch.float64 and v.shape[0] == CLIENTS for v in logits.values())


def test_a_channel_mask_scales_a_layers_output() -> None:
    conv = nn.Conv2d(2, 4, 3).double()
    masks = {"weight": torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)}
    x, _ = batch()
    out = functional_call(conv, effective(params_of(conv), masks, "channel"), (x,))
    torch.testing.assert_close(out, conv(x) * masks["weight"].view(1, -1, 1, 1))


def test_masks_of_ones_change_nothing() -> None:
    net = small()
    for kind in KINDS:
        ones = {name: torch.ones_like(v[0]) for name, v in fresh(net, kind).items()}
        assert all(
            torch.equal(w, params_of(net)[n]) for n, w in effective(params_of(net), ones, kind).items()
        )


def test_gradients_are_the_chain_rule() -> None:
    net = small()
    one = row(fresh(net, "weight"), 1)
    served(net, one, "weight").backward()
    direct = {
        name: w.detach().requires_grad_()
        for name, w in effective(params_of(net), soft(one), "weight").items()
    }
    x, y = batch()
    F.cross_entropy(functional_call(net, direct, (x,)), y).backward()
    for name, w in params_of(net).items():
        s = one[name].detach().sigmoid()
        torch.testing.assert_close(w.grad, direct[name].grad * s)
        torch.testing.assert_close(one[name].grad, direct[name].grad * w.detach() * s * (1 - s))


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, CLIENTS - 1), st.floats(0, 0.1), st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_filled_gradients_are_those_of_autograd(kind: str, client: int, weight: float, seed: int) -> None:
    net = small()
    logits, traced = fresh(net, kind), {name: v.requires_grad_() for name, v in fresh(net, kind).items()}
    own = {name: v[client] for name, v in traced.items()}
    (served(net, own, kind, seed) + weight * penalty(traced)).backward()
    one = row(logits, client)
    for _ in range(2):  # the second time into memory that holds the first gradients
        for v in one.values():
            v.grad = None
        served(net, one, kind, seed).backward()
        fill_gradients_(logits, client, one, weight)
    for name, v in logits.items():
        torch.testing.assert_close(v.grad, traced[name].grad, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_lies_in_the_memory_of_all(kind: str) -> None:
    logits = fresh(small(), kind)
    one = row(logits, 2)
    assert all(v.is_leaf and v.requires_grad for v in one.values())
    with torch.no_grad():
        for v in one.values():
            v.fill_(7.0)
    assert all((v[2] == 7.0).all() and not (v[:2] == 7.0).any() for v in logits.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_the_logits_of_other_clients_by_penalty_and_decay_only(kind: str) -> None:
    def step(client: int | None) -> dict[str, Tensor]:
        net = small()
        logits = fresh(net, kind)
        optimiser = torch.optim.Adam(logits.values(), 1e-3, weight_decay=1e-5)
        one = row(logits, 1)
        if client is not None:
            served(net, one, kind).backward()
        fill_gradients_(logits, 1, one, 1e-3)
        optimiser.step()
        return logits

    with_batch, without = step(1), step(None)
    for name, start in fresh(small(), kind).items():
        others = [0, 2]
        assert torch.equal(with_batch[name][others], without[name][others])
        assert (with_batch[name][others] < start[others]).all()
    assert any(not torch.equal(with_batch[name][1], without[name][1]) for name in without)


def test_penalty_is_a_sum_over_all_entries_of_all_clients_or_of_one() -> None:
    logits = fresh(small(), "weight")
    total = penalty(logits)
    assert total.item() == pytest.approx(sum(v.sigmoid().sum().item() for v in logits.values()))
    assert sum(penalty(row(logits, i)).item() for i in range(CLIENTS)) == pytest.approx(total.item())


@pytest.mark.parametrize("kind", KINDS)
def test_an_unseen_client_gets_the_mean_of_the_masks_not_of_the_logits(kind: str) -> None:
    logits = fresh(small(), kind)
    for name, mask in of_unseen(logits).items():
        each = torch.stack([soft(row(logits, i))[name] for i in range(CLIENTS)]).detach()
        torch.testing.assert_close(mask, each.mean(0))
        assert not torch.allclose(mask, logits[name].mean(0).sigmoid())


@pytest.mark.parametrize(("weight", "v", "s"), [(1e-3, -3.3315, 0.034506), (1e-4, -1.4956, 0.183080)])
def test_what_only_sees_penalty_and_coupled_decay_settles(weight: float, v: float, s: float) -> None:
    """As many steps as the server takes in the default run on Mixed-NonIID."""
    logits = initial(
        {"w": torch.zeros(20, dtype=torch.float64)}, 2, "weight", torch.Generator().manual_seed(0)
    )
    optimiser = torch.optim.Adam(logits.values(), 1e-3, weight_decay=1e-5, fused=True)
    one = row(logits, 0)
    for _ in range(18_360):
        fill_gradients_(logits, 0, one, weight)
        optimiser.step()
    assert logits["w"].flatten().tolist() == pytest.approx([v] * 40, abs=1e-3)
    assert logits["w"].sigmoid().mean().item() == pytest.approx(s, abs=1e-5)
