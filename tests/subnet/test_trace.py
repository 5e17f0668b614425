"""What torch.fx cannot follow, what does not fit, and what `keep` may name: one clear line each."""

from __future__ import annotations

import copy

import pytest
import torch
from odd_networks import CASES
from torch import Tensor, nn

from leanfleet.errors import TraceError, UserError
from leanfleet.subnet import SubnetPlan


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for row in x:
            row.zero_()
        return x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x, "features": x}


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("holds a socket")


def refusal(net: nn.Module, *shape: int, **options) -> str:
    with pytest.raises(TraceError) as caught:
        SubnetPlan.trace(net, torch.zeros(1, *shape), **options)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "\n" not in message
    return message


def test_a_branch_on_values_is_named_with_its_place() -> None:
    message = refusal(nn.Sequential(nn.Linear(3, 3), Branching()), 3)
    line = Branching.forward.__code__.co_firstlineno + 1
    assert message.startswith(f"Sequential cannot be traced by torch.fx (test_trace.py, line {line}): ")
    assert "make its forward free of branches and loops that depend on values" in message


def test_a_loop_over_values_is_named() -> None:
    assert "Looping cannot be traced by torch.fx (test_trace.py, line" in refusal(Looping(), 3)


def test_the_network_takes_one_tensor() -> None:
    message = refusal(TwoInputs(), 3)
    assert message == (
        "TwoInputs must take one tensor, its forward takes ['x', 'y']; wrap it in a module that fills in the others"
    )


def test_the_network_returns_one_tensor() -> None:
    assert refusal(TwoOutputs(), 3).startswith(
        "TwoOutputs must return one tensor, its forward returns {'logits'"
    )


def test_the_example_must_fit() -> None:
    assert refusal(CASES["mlp"].build(), 13).startswith("Sequential does not take an input of shape (13,): ")
    assert "shape (4, 6, 6)" in refusal(CASES["residual"].build(), 4, 6, 6)


def test_a_hook_of_the_whole_network_is_named() -> None:
    net = nn.Linear(3, 3)
    net.register_forward_hook(lambda module, inputs, out: -out)
    assert refusal(net, 3) == "Linear has a forward hook, which torch.fx does not see; remove it"


def test_an_argument_in_an_unknown_form_is_refused_with_its_node() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)[:, : x.size(0)]

    assert refusal(Odd(), 3).startswith(
        "node 'getitem' (getitem()) is called in a way that is not understood ("
    )


def test_what_cannot_be_copied_is_said() -> None:
    assert refusal(Uncopyable(3, 3), 3) == "Uncopyable cannot be copied: holds a socket"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["projekt"], "keep names 'projekt', which is no layer of Residual; did you mean 'project'?"),
        (
            ["a1", "nothing-like-it"],
            "keep names 'nothing-like-it', which is no layer of Residual; known: a1, a2, b1, b2, ",
        ),
        ("stem", "keep names 's', which is no layer of Residual"),
    ],
)
def test_keep_names_layers(keep: list[str], message: str) -> None:
    assert refusal(CASES["residual"].build(), 3, 6, 6, keep=keep).startswith(message)


def test_tracing_leaves_no_trace() -> None:
    """Parameters, buffers, mode, attributes and the global random stream are as before."""
    net = nn.Sequential(CASES["affine"].build(), nn.Dropout(0.5)).double()
    before, state = copy.deepcopy(net), torch.random.get_rng_state()
    attributes = set(vars(net[0]))
    SubnetPlan.trace(net, torch.zeros(1, 3, 6, 6, dtype=torch.float64))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(vars(net[0])) == attributes
    assert net.training
    for (name, tensor), (_, old) in zip(net.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(tensor, old), name


def test_the_example_gives_its_shape_and_type_only() -> None:
    net = nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 2))
    plans = [SubnetPlan.trace(net, torch.full((n, 3), n)) for n in (1, 4)]
    assert plans[0].fingerprint == plans[1].fingerprint
    assert [group.name for group in plans[0].groups] == ["2"]
    words = torch.tensor([[1, 2, 10]])
    assert torch.equal(plans[0].run(dict(net.named_parameters()), plans[0].full, words), net(words))


def test_numbers_that_the_forward_computes_are_followed() -> None:
    class Halving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 10), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            width = x.size(-1) // 2 - 2
            return self.b(x[:, :width])

    plan = SubnetPlan.trace(Halving(), torch.zeros(1, 4))
    assert [group.channels for group in plan.groups] == [3, 7]
