"""Steps of clients and servers: what moves what, and what is left as it was when a step is refused."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_split import BATCH, CLASSES, CLIENTS, batch, copied, method, net, same
from torch import Tensor

from leanfleet.errors import LeanfleetError, NetworkError, WireError
from leanfleet.split import METHODS, Setting, cut
from leanfleet.split.client import Client
from leanfleet.split.masks import effective, row, soft

SERVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adasplit", {}),
    ("adasplit", {"masks": "channel"}),
    ("adasplit", {"masks": "none"}),
    ("adasplit", {"mask_scope": "active", "server_grad": True}),
    ("sl-basic", {}),
    ("splitfed", {"version": 1}),
    ("splitfed", {"version": 2}),
)
EVERY_SERVER = pytest.mark.parametrize(("name", "options"), SERVERS)


def activation(number: int = 0) -> Tensor:
    x, _ = batch(number)
    with torch.no_grad():
        return torch.nn.functional.max_pool2d(torch.relu(torch.cat([x, x, x], 1)), 2)


def labels() -> Tensor:
    return batch()[1]


def gradients(client: Client) -> list[Tensor]:
    return [p.grad.clone() for p in client._modules.parameters() if p.grad is not None]


# -- the cut (check list 3) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"head": False}, {"activation_l1": 1e-3}, {"masks": "none"}])
def test_the_server_s_step_does_not_reach_a_client(options: dict[str, Any]) -> None:
    m = method(**options)
    alone, heard, server = m.client(), m.client(), m.server()
    for number in range(3):
        x, y = batch(number)
        assert alone.step(x, y, sends=False)[0] is None
        up, loss = heard.step(x, y, sends=True)
        assert up is not None
        assert not up.requires_grad
        assert server.step(0, up, y).gradient is None
        assert all(torch.equal(a, b) for a, b in zip(gradients(alone), gradients(heard), strict=True))
        assert loss is not None
    assert same(alone.tensors(), heard.tensors())


def test_with_server_grad_both_gradients_are_added() -> None:
    m = method(server_grad=True, masks="none")
    x, y = batch()
    alone, heard, server = m.client(), m.client(), m.server()
    alone.step(x, y, sends=False)
    up, _ = heard.step(x, y, sends=True)
    assert up is not None
    gradient = server.step(0, up, y).gradient
    assert gradient is not None
    heard.reply(gradient)
    whole = net()
    F.cross_entropy(whole(x), y).backward()
    # The last two are the head's, which the server does not know.
    own = [p.grad for p in whole[0].parameters() if p.grad is not None]
    both = gradients(heard)
    for mine, local, its in zip(both[:2], gradients(alone)[:2], own, strict=True):
        torch.testing.assert_close(mine, local + its, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(both[2:], gradients(alone)[2:], strict=True))


def test_sl_basic_trains_the_network_as_if_it_were_whole() -> None:
    m = method("sl-basic")
    client, server, whole = m.client(), m.server(), net()
    optimiser = torch.optim.Adam(whole.parameters(), 1e-2, weight_decay=1e-5, fused=True)
    for number in range(3):
        x, y = batch(number)
        up, loss = client.step(x, y, sends=True)
        assert up is not None
        assert loss is None
        client.reply(server.step(0, up, y).gradient)
        optimiser.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        optimiser.step()
    state = {**client.own_net(), **server.view(0)}
    for name, p in whole.named_parameters():
        torch.testing.assert_close(
            state.get(f"net.{name}", state.get(name)), p.detach(), atol=1e-4, rtol=1e-3
        )


def test_a_client_without_a_reply_goes_on_alone_or_stays_as_it_was() -> None:
    m = method(server_grad=True)
    alone, waited = m.client(), m.client()
    x, y = batch()
    alone.step(x, y, sends=False)
    waited.step(x, y, sends=True)
    waited.reply(None)
    assert same(alone.tensors(), waited.tensors())
    basic = method("sl-basic").client()
    before = copied(basic.tensors())
    basic.step(x, y, sends=True)
    basic.reply(None)
    assert same(before, basic.tensors())
    assert basic.step(x, y, sends=False) == (None, None)


def test_a_frozen_client_sends_and_never_changes() -> None:
    m = method(local_loss="none")
    client = m.client()
    before = copied(client.tensors())
    up, loss = client.step(*batch(), sends=True)
    assert up is not None
    assert loss is None
    assert same(before, client.tensors())


def test_an_auxiliary_classifier_trains_the_half_by_cross_entropy() -> None:
    client, (x, y) = method(local_loss="aux_ce").client(), batch()
    net, head = client._modules["net"], client._modules["head"]
    expected = F.cross_entropy(head(net(x)), y)
    wanted = torch.autograd.grad(expected, list(client._modules.parameters()))
    _, loss = client.step(x, y, sends=False)
    assert loss == pytest.approx(expected.item())
    assert all(torch.equal(a, b) for a, b in zip(gradients(client), wanted, strict=True))
    assert head(net(x)).shape == (BATCH, CLASSES)


def test_a_diverged_client_says_so_and_keeps_its_state() -> None:
    client = method().client()
    before = copied(client.tensors())
    x, y = batch()
    with pytest.raises(
        LeanfleetError, match=r"its local loss is nan: training has diverged; lower \[training\] lr"
    ):
        client.step(x * math.nan, y, sends=True)
    assert same(before, client.tensors())


# -- masks (check list 6) ------------------------------------------------------------------------------------


def masked(scope: str, penalty: float = 1e-3, lr: float = 1e-2) -> Any:
    return method(mask_scope=scope, mask_penalty=penalty).server()


def logits_of(server: Any) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in server.tensors().items() if n.startswith("masks/")}


@pytest.mark.parametrize("kind", ["weight", "channel"])
def test_other_clients_logits_move_by_penalty_and_decay_only(kind: str) -> None:
    one, other = (method(masks=kind).server() for _ in range(2))
    start = logits_of(one)
    # Two batches that have nothing in common: whoever is not in them cannot tell them apart.
    one.step(1, activation(0), labels())
    other.step(1, 5 * activation(7), labels().flip(0))
    moved, again = logits_of(one), logits_of(other)
    for name, v in start.items():
        others = [0, 2]
        assert torch.equal(moved[name][others], again[name][others])
        assert (moved[name][others] < v[others]).all()
    assert any(not torch.equal(moved[name][1], again[name][1]) for name in start)


def test_without_penalty_and_decay_others_do_not_move_at_all() -> None:
    found = cut(net(), 1, torch.zeros(2, 2, 8, 8))
    setting = Setting(found, CLIENTS, CLASSES, 10, 5, 1e-2, 0.0, BATCH, 0)
    kind = METHODS["adasplit"]
    server = kind(setting, kind.Options(mask_penalty=0.0)).server()
    start = copied(server.tensors())
    for number in range(2):
        server.step(1, activation(number), labels())
    end = server.tensors()
    for name, v in start.items():
        if name.startswith("masks/"):
            assert torch.equal(end[name][[0, 2]], v[[0, 2]])
            assert not torch.equal(end[name][1], v[1])


def test_the_active_scope_leaves_other_clients_alone() -> None:
    server = masked("active")
    start = copied(server.tensors())
    server.step(0, activation(), labels())
    server.step(2, activation(1), labels())
    end = server.tensors()
    for name, v in start.items():
        if name.startswith("masks/"):
            assert torch.equal(end[name][1], v[1])
            assert not torch.equal(end[name][0], v[0])
    assert not any(name.startswith("1/") for name in end)


@pytest.mark.parametrize("scope", ["all", "active"])
def test_a_step_is_adams_on_cross_entropy_and_penalty(scope: str) -> None:
    server = masked(scope)
    start = copied(server.tensors())
    weights = {
        n.removeprefix("net/"): t.clone().requires_grad_() for n, t in start.items() if n.startswith("net/")
    }
    every = {
        n.removeprefix("masks/"): t.clone().requires_grad_()
        for n, t in start.items()
        if n.startswith("masks/")
    }
    heard = server.step(1, activation(), labels())
    m = method()
    half, entry = m.server_half(), m.entry()
    view = effective(weights, soft({n: v[1] for n, v in every.items()}), "weight")
    loss = F.cross_entropy(torch.func.functional_call(half, view, (entry(activation()),)), labels())
    assert heard.loss == pytest.approx(loss.item(), abs=1e-6)
    omega = sum((v if scope == "all" else v[1]).sigmoid().sum() for v in every.values())
    (loss + 1e-3 * omega).backward()
    torch.optim.Adam([*weights.values(), *every.values()], 1e-2, weight_decay=1e-5).step()
    end = server.tensors()
    for name, w in weights.items():
        torch.testing.assert_close(end[f"net/{name}"], w.detach(), atol=1e-5, rtol=1e-4)
    for name, v in every.items():
        rows = [0, 1, 2] if scope == "all" else [1]
        torch.testing.assert_close(end[f"masks/{name}"][rows], v.detach()[rows], atol=2e-5, rtol=1e-4)


def test_views_are_what_steps_train_and_an_unseen_client_gets_the_mean() -> None:
    server: Any = masked("all")
    for client in range(CLIENTS):
        server.step(client, activation(client), labels())
    m = method()
    views = [server.view(i) for i in range(CLIENTS)]
    loss = F.cross_entropy(m.logits(views[1], activation(5)), labels())
    assert server.step(1, activation(5), labels()).loss == pytest.approx(loss.item(), abs=1e-6)
    for name, t in server.unseen().items():
        mean = torch.stack([view[name] for view in views]).mean(0)
        # The weights have moved since; what matters is that it is between the clients'.
        assert (t - mean).abs().max() < 0.1


# -- refused steps -------------------------------------------------------------------------------------------


@EVERY_SERVER
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_refused_step_leaves_the_server_bit_for_bit(name: str, options: dict[str, Any], bad: float) -> None:
    server = method(name, norms=True, **options).server()
    server.step(0, activation(), labels())
    before = copied(server.tensors())
    poison = activation(1)
    poison[3, 2, 1, 1] = bad
    # The norm before masked weights makes something finite even of 1e30.
    usable = bad == 1e30 and name == "adasplit" and options.get("masks") != "none"
    with nullcontext() if usable else pytest.raises(WireError, match=r"its loss is .* not finite"):
        server.step(0, poison, labels())
    assert usable or same(before, copied(server.tensors()))
    server.step(1, activation(2), labels())
    assert all(bool(t.isfinite().all()) for t in server.tensors().values())


# -- state ---------------------------------------------------------------------------------------------------


@EVERY_SERVER
def test_a_server_is_where_it_is_told_to_be(name: str, options: dict[str, Any]) -> None:
    server = method(name, **options).server(torch.device("meta"))
    assert {t.device.type for t in server.tensors().values()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@EVERY_SERVER
def test_a_server_on_a_gpu_does_the_same(name: str, options: dict[str, Any]) -> None:
    m, device = method(name, **options), torch.device("cuda")
    here, there = m.server(), m.server(device)
    for number in range(3):
        own = here.step(1, activation(number), labels()).loss
        assert there.step(1, activation(number).to(device), labels().to(device)).loss == pytest.approx(own)
    there.restore(here.tensors())
    assert all(torch.equal(t.cpu(), here.tensors()[n].cpu()) for n, t in there.tensors().items())


@EVERY_SERVER
def test_a_server_goes_on_from_its_state(name: str, options: dict[str, Any]) -> None:
    m = method(name, norms=True, **options)
    whole, parted, again = (m.server() for _ in range(3))
    for number in range(4):
        whole.step(number % CLIENTS, activation(number), labels())
    for number in range(2):
        parted.step(number % CLIENTS, activation(number), labels())
    again.restore(copied(parted.tensors()))
    for number in range(2, 4):
        again.step(number % CLIENTS, activation(number), labels())
    assert same(whole.tensors(), again.tensors())
    assert same(whole.view(1), again.view(1))


@pytest.mark.parametrize("name", METHODS)
def test_a_client_goes_on_from_its_state(name: str) -> None:
    m = method(name, norms=True)
    server = m.server()

    def steps(client: Client, numbers: range) -> None:
        for number in numbers:
            x, y = batch(number)
            up, _ = client.step(x, y, sends=True)
            assert up is not None
            if m.listens:
                client.reply(server.step(0, up, y).gradient)

    whole, parted, again = (m.client() for _ in range(3))
    fresh = copied(server.tensors())
    steps(whole, range(4))
    server.restore(fresh)
    steps(parted, range(2))
    again.restore(copied(parted.tensors()))
    steps(again, range(2, 4))
    assert same(whole.tensors(), again.tensors())


def test_what_is_taken_over_has_no_moments() -> None:
    m = method()
    one, other = m.client(), m.client()
    one.step(*batch(0), sends=False)
    other.step(*batch(1), sends=False)
    moments = {n: t.clone() for n, t in other.tensors().items() if n.startswith("adam/")}
    other.load(copied(one.own()))
    assert same(copied(one.own()), copied(other.own()))
    assert {n.partition(".")[0] for n in one.own()} == {"net", "head"}
    assert same(moments, {n: t for n, t in other.tensors().items() if n.startswith("adam/")})
    assert not same(moments, {n: t for n, t in one.tensors().items() if n.startswith("adam/")})


def test_copies_are_averaged_by_weight_and_keep_their_moments() -> None:
    server = method("splitfed", norms=True, version=1).server()
    for client in range(CLIENTS):
        server.step(client, activation(client), labels())
    views = [copied(server.view(i)) for i in range(CLIENTS)]
    moments = {n: t.clone() for n, t in server.tensors().items() if "/adam/" in n}
    server.end_round([1.0, 2.0, 5.0])
    for name, t in views[0].items():
        mean = (views[0][name] + 2 * views[1][name] + 5 * views[2][name]) / 8
        for client in range(CLIENTS):
            torch.testing.assert_close(server.view(client)[name], mean if t.is_floating_point() else t)
    assert same(moments, {n: t for n, t in server.tensors().items() if "/adam/" in n})


# -- what a method says about itself -------------------------------------------------------------------------


def test_learning_rates_rest_in_the_local_phase_and_follow_a_cosine() -> None:
    m = method(kappa=0.6)
    assert [m.lr_at(r) / m.setting.lr for r in range(7)] == [1.0] * 7
    assert m.lr_at(9) / m.setting.lr == pytest.approx((1 + math.cos(math.pi * 3 / 12)) / 2)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], m.setting.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=12)
    basic = method("sl-basic")
    for r in range(10):
        assert basic.lr_at(r) == pytest.approx(cosine.get_last_lr()[0])
        optimiser.step()
        cosine.step()


def test_what_steps_cost() -> None:
    m = method()
    forward = m.setting.cut.client_macs + m.client().head_macs
    assert m.client_macs(sends=True) == m.client_macs(sends=False) == (forward, 3 * forward)
    frozen = method(local_loss="none")
    half = frozen.setting.cut.client_macs
    assert frozen.client_macs(sends=True) == (half, half)
    assert frozen.client_macs(sends=False) == (0, 0)
    for listening in (method("sl-basic"), method(local_loss="none", server_grad=True)):
        assert listening.client_macs(sends=True) == (half, 3 * half)
        assert listening.client_macs(sends=True, answered=False) == (half, half)
        assert listening.client_macs(sends=False) == (0, 0)
    assert m.server_macs() == (m.setting.cut.server_macs, 3 * m.setting.cut.server_macs)


def test_too_few_outputs_and_odd_cuts_are_the_users_mistake() -> None:
    found = cut(net(), 1, torch.zeros(2, 2, 8, 8))
    kind = METHODS["adasplit"]
    with pytest.raises(NetworkError, match="the network gives 4 outputs; 5 classes need as many"):
        kind(Setting(found, 2, 5, 1, 1, 0.1, 0.0, 4, 0), kind.Options())


def test_halves_of_a_method_are_copies() -> None:
    m = method()
    before = copied(m.setting.cut.client.state_dict())
    m.client().step(*batch(), sends=False)
    assert same(before, m.setting.cut.client.state_dict())
    assert same(copied(m.client().tensors()), copied(m.client().tensors()))
    assert row({"a": torch.zeros(2, 3)}, 1)["a"].is_leaf
