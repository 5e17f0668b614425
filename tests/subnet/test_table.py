"""What cannot be cut is refused by name, with advice that works when it is followed."""

from __future__ import annotations

import ast
import re

import pytest
import torch
from masked import close
from refused_networks import REFUSED
from torch import Tensor, nn

from leanfleet.errors import TraceError
from leanfleet.subnet import SubnetPlan

EXAMPLE = torch.zeros(1, 3, 4, 4, dtype=torch.float64)


def follow_advice(net: nn.Module) -> tuple[SubnetPlan, list[str]]:
    """Exempt what the messages say until the network is accepted; return the plan and the messages."""
    keep: list[str] = []
    messages: list[str] = []
    while len(messages) < 4:
        try:
            return SubnetPlan.trace(net, EXAMPLE, keep), messages
        except TraceError as error:
            messages.append(str(error))
            keep += ast.literal_eval(messages[-1].partition("keep=")[2])
    raise AssertionError(messages)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_node_and_their_advice_works(name: str) -> None:
    build, node = REFUSED[name]
    net = build().double()
    plan, messages = follow_advice(net)
    assert re.search(node, messages[0]), messages
    assert all(re.match(r"node '\w+' \(.+\) ", message) for message in messages)
    # What comes before the exempted layer can still be cut.
    assert [group.name for group in plan.groups][:1] == ["first"]
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    close(plan.run(dict(net.named_parameters()), plan.full, x), net(x))
    kept = plan.draw(plan.uniform(0.5), torch.Generator())
    leaves = plan.pack(dict(net.named_parameters()), kept)
    assert plan.run(leaves, kept, x).shape == (4, 5)
    assert not kept.full


class Meets(nn.Module):
    """Two linear layers whose outputs meet in an operation."""

    def __init__(self, operation, width: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.operation = nn.Linear(4, width), nn.Linear(4, width), operation
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(torch.relu(self.a(x)), self.b(x)))


@pytest.mark.parametrize(
    "operation",
    [
        torch.add, torch.sub, torch.mul, torch.maximum, lambda a, b: a / (b.abs() + 1.0), lambda a, b: a - b,
        lambda a, b: torch.where(a > b, a, b), lambda a, b: a.masked_fill(b <= 0.0, 1.0),
        lambda a, b: a.add(b, alpha=2.0), lambda a, b: torch.add(b, other=a), lambda a, b: a.mul_(b),
    ],
)  # fmt: skip
def test_what_meets_elementwise_is_one_group(operation) -> None:
    net = Meets(operation).double()
    plan = SubnetPlan.trace(net, torch.zeros(1, 4, dtype=torch.float64))
    assert [(group.name, group.channels, group.layers) for group in plan.groups] == [("a", 6, ("a", "b"))]


def test_an_operation_nobody_wrote_down_is_refused_by_its_name() -> None:
    with pytest.raises(TraceError, match=r"node 'cumsum' \(cumsum\(\)\) cannot be cut along channels.*'a'"):
        SubnetPlan.trace(Meets(lambda a, b: torch.cumsum(a, 1) + b), torch.zeros(1, 4))


@pytest.mark.parametrize(
    "operation", [lambda a, b: torch.log_softmax(a + b, dim=-1), lambda a, b: (a * b).softmax(1)]
)
def test_softmax_over_channels_needs_them_all(operation) -> None:
    assert SubnetPlan.trace(Meets(operation), torch.zeros(1, 4)).groups == ()
