"""Halves that together are the network, at every place where one value crosses; all other places refused by name."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfleet.errors import NetworkError
from leanfleet.nets import NETWORKS, build
from leanfleet.split.cut import Cut, cut, places

LENET = {1: (20, 16, 16), 2: (50, 8, 8), 3: (800,), 4: (500,)}


def example(name: str) -> Tensor:
    return torch.randn(3, *NETWORKS[name].shape, generator=torch.Generator().manual_seed(0))


def composed(found: Cut, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = found.server(found.client(x))
    return logits


class Branchy(nn.Module):
    """A linear layer used twice, a parameter of its own, functional dropout, a skip connection, a step in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.full((6,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x)) * self.scale
        x = self.twice(x)
        y = F.relu(x, inplace=True)
        y = F.dropout(y, 0.5, self.training)
        return self.last(self.twice(y) + y)


@pytest.mark.parametrize("name", ["lenet", "digits-cnn", "resnet-20", "densenet-bc-19", "femnist-cnn"])
def test_halves_are_the_network_at_every_place(name: str) -> None:
    net, x = build(name), example(name)
    # Not the norms' start, which would hide a half in the wrong mode.
    net(x)
    net.eval()
    with torch.no_grad():
        whole = net(x)
    total = sum(p.numel() for p in net.parameters())
    found = places(net, x)
    assert len(found) > 3
    for place in found[:: 1 if len(found) < 20 else 3]:
        halves = cut(net, place.node, x)
        assert torch.equal(composed(halves, x), whole), place
        assert (halves.shape, halves.values) == (place.shape, place.values)
        assert (halves.client_macs, halves.server_macs) == (place.client_macs, place.server_macs)
        counts = [sum(p.numel() for p in half.parameters()) for half in (halves.client, halves.server)]
        assert counts == [place.client_params, place.server_params]
        assert sum(counts) == total
        names = [n for half in (halves.client, halves.server) for n, _ in half.named_parameters()]
        assert sorted(names) == sorted(n for n, _ in net.named_parameters())
        if place.layers is not None:
            assert torch.equal(composed(cut(net, place.layers, x), x), whole)
            assert cut(net, place.layers, x).shape == place.shape
            assert cut(net, place.layers, x).rectified == halves.rectified


def test_nothing_about_the_network_changes() -> None:
    net = build("digits-cnn")
    net.norm2.eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = cut(net, 4, torch.zeros(1, 1, 8, 8))
    places(net, torch.zeros(1, 1, 8, 8))
    assert [n for n, m in net.named_modules() if not m.training] == ["norm2"]
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in before.items())
    assert not any(m._forward_hooks for m in net.modules())
    assert found.client.training
    assert found.server.training


@pytest.mark.parametrize("layers", LENET)
def test_lenet_by_number_and_by_name(layers: int) -> None:
    net, x = build("lenet"), example("lenet")
    by_number, by_name = cut(net, layers, x), cut(net, f"layer{layers}", x)
    for found in (by_number, by_name):
        assert found.shape == LENET[layers]
        assert found.rectified
        assert found.client_macs + found.server_macs == 10_901_000
        assert found.outputs == 10


@pytest.mark.parametrize(
    ("name", "at"),
    [("resnet-20", "stage1_0_conv1"), ("resnet-20", "stage2.0.norm2"), ("densenet-bc-19", "block1.1.conv2")],
)
def test_a_cut_across_a_skip_connection_is_refused_by_name(name: str, at: str) -> None:
    with pytest.raises(
        NetworkError, match=r"crosses it too \(a skip connection\?\); one value may cross; places to"
    ):
        cut(build(name), at, example(name))


@pytest.mark.parametrize("at", ["stage1.0", "stage1.2", "stage2", "stage3.1"])
def test_a_block_can_be_cut_off_at_its_end(at: str) -> None:
    net, x = build("resnet-20").eval(), example("resnet-20")
    found = cut(net, at, x)
    assert found.rectified
    with torch.no_grad():
        assert torch.equal(composed(found, x), net(x))


@pytest.mark.parametrize(
    ("name", "at", "words"),
    [
        ("lenet", 0, "cut 0: leaves one half empty; Sequential has 5 layers, cut at 1 to 4"),
        ("lenet", 5, "cut 5: leaves one half empty"),
        ("lenet", -1, "cut -1: leaves one half empty"),
        ("lenet", "layer5", "cut 'layer5': the server's half has no parameters"),
        ("lenet", "input_1", "cut 'input_1': leaves one half empty"),
        ("lenet", "layer2.poll", "no such layer or node; did you mean 'layer2.pool'?"),
        (
            "lenet",
            "xyz",
            "places to cut: layer1_conv, layer1_relu, layer1_norm, ..., layer4_linear, layer4_relu",
        ),
        ("densenet-bc-19", "xyz", "no such layer or node; places to cut: conv0"),
    ],
)
def test_what_cannot_be_cut_is_said_in_a_line(name: str, at: int | str, words: str) -> None:
    with pytest.raises(NetworkError, match=re.escape(words)) as caught:
        cut(build(name), at, example(name))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_a_number_counts_layers_of_a_plain_sequence_only() -> None:
    class Odd(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x)) + 1

    for net in (Branchy(), Odd(nn.Linear(4, 4), nn.Linear(4, 3))):
        with pytest.raises(
            NetworkError, match=r"a number counts the layers of an nn.Sequential, and .* is none"
        ):
            cut(net, 1, torch.zeros(1, 4))


def test_layers_that_are_there_twice_count_twice() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 5), relu, nn.Linear(5, 5), relu, nn.Linear(5, 3))
    x = torch.randn(2, 4)
    found = cut(net, 3, x)
    assert torch.equal(composed(found, x), net(x).detach())
    assert (found.client_macs, found.server_macs) == (45, 15)
    assert cut(net, 4, x).rectified
    with pytest.raises(NetworkError, match="leaves one half empty; Sequential has 5 layers"):
        cut(net, 5, x)


def test_what_both_halves_would_use_is_named() -> None:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 3))
    for at in (1, "1"):
        with pytest.raises(NetworkError, match=r"both halves use '0.weight' \('[02].weight'\)"):
            cut(net, at, torch.zeros(1, 4))
    assert [place.node for place in places(net, torch.zeros(1, 4))] == ["_0_1", "_3"]
    norm = nn.BatchNorm1d(4, affine=False)
    net = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU(), norm, nn.Linear(4, 3))
    with pytest.raises(NetworkError, match=r"both halves use '1\.running_mean'"):
        cut(net, 3, torch.zeros(1, 4))


def test_any_network_that_can_be_traced() -> None:
    net, x = Branchy(), torch.randn(5, 4)
    found = {place.node: place for place in places(net, x)}
    # Behind the second use of the shared layer nothing is shared any more.
    assert set(found) == {"first", "relu", "mul", "add"}
    assert found["mul"].client_params == 4 * 6 + 6 + 6
    assert (found["mul"].client_macs, found["mul"].server_macs) == (24, 2 * 36 + 18)
    net.eval()
    whole = net(x).detach()
    for at in found:
        halves = cut(net, at, x)
        assert torch.equal(composed(halves, x), whole)
        assert halves.rectified == (at == "relu")


def test_functional_dropout_follows_the_mode_of_its_half() -> None:
    torch.manual_seed(0)
    halves = cut(Branchy(), "mul", torch.zeros(1, 4))
    x = torch.rand(64, 6)
    assert not torch.equal(halves.server(x), halves.server(x))
    halves.server.eval()
    assert torch.equal(halves.server(x.clone()), halves.server(x.clone()))


class Boxed(nn.Module):
    """Ends, by registration, in a ReLU that what it gives has not come through."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.linear(x)) + x


class Untraceable(Boxed):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 1e9 else self.relu(self.linear(x))


def test_what_is_rectified_is_found_in_what_happens_not_in_what_is_listed() -> None:
    x = torch.randn(3, 4)
    conv = [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 1)]
    cases = {
        True: (
            [nn.ReLU()],
            [nn.ReLU(), nn.LocalResponseNorm(2), nn.MaxPool2d(2, 1, 1), nn.Dropout(0.5), nn.Identity()],
        ),
        False: (
            [], [nn.Sigmoid()], [nn.ReLU(), nn.AvgPool2d(1)], [nn.ReLU(), nn.BatchNorm2d(2)], [nn.LeakyReLU()],
            [nn.ReLU(), nn.Dropout(), nn.Softplus()],
        ),
    }  # fmt: skip
    for expected, ends in cases.items():
        for end in ends:
            width = nn.Sequential(*conv, *end)(x).flatten(1).shape[1]
            net = nn.Sequential(*conv, *end, nn.Flatten(), nn.Linear(width, 3))
            assert cut(net, 2 + len(end), x).rectified == expected, end
    for box in (Boxed(), Untraceable()):
        assert not cut(nn.Sequential(box, nn.Linear(4, 3)), 1, x).rectified


@pytest.mark.parametrize("at", ["layer1", "layer2", "layer1.relu", "layer3", "layer1.norm"])
def test_where_a_rectified_activation_is_zero_no_gradient_goes_further(at: str) -> None:
    net, x = build("lenet"), example("lenet")
    with torch.no_grad():
        for name, bias in net.named_parameters():
            bias -= 0.5 * name.endswith("conv.bias")
    found = cut(net, at, x)
    activation = found.client(x)
    gradient = torch.randn(activation.shape, generator=torch.Generator().manual_seed(1))
    zero = activation == 0
    assert zero.float().mean() > 0.05
    grads = [
        torch.autograd.grad(activation, list(found.client.parameters()), g, retain_graph=True)
        for g in (gradient, gradient.masked_fill(zero, 0.0))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (build("lenet"), (1, 32, 32), r"does not take \(1, 32, 32\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(5, 3)), (4,), r"does not take \(4,\)"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
            (2, 4),
            r"gives \(1, 2, 3\) for one image",
        ),
    ],
)
def test_the_wrong_network_is_the_users_mistake(net: nn.Module, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        cut(net, 1, torch.zeros(2, *shape))


def test_what_no_formula_counts_is_counted_too() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.linear.weight

    net = nn.Sequential(nn.Linear(4, 4), Product(), nn.ReLU(), nn.Linear(4, 3))
    found = cut(net, 1, torch.zeros(2, 4))
    assert (found.client_macs, found.server_macs) == (16, 16 + 12)
