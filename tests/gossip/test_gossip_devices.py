"""Nodes on a GPU, without one: tensors that only claim to be there must never meet those of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from gossip_fleet import fleet_of, normal, run, ws, xs
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from leanfleet.fleet import build_graph
from leanfleet.gossip.descent import Sgd
from leanfleet.gossip.layout import Layout
from leanfleet.gossip.node import Node
from leanfleet.gossip.rules import ErrorMemory, Estimates, Rule, Whole
from leanfleet.gossip.sums import RunningSums
from leanfleet.wire import Qsgd, RandomK, Sign, TopK

GPU = torch.device("cuda", 0)


class Claimed(Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    device = GPU


def claimed(value: Any) -> Any:
    return (
        value.as_subclass(Claimed) if isinstance(value, Tensor) and not isinstance(value, Claimed) else value
    )


class Strict(TorchFunctionMode):
    """Refuses functions of tensors here and there; what is made on the GPU, or of what is there, is there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (args, dict(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        there = [t for t in tensors if isinstance(t, Claimed)]
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        asked = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.device)]
        if there and func is Tensor.numpy:
            raise AssertionError("a tensor of the GPU has no numpy()")
        if there and not asked and func is not Tensor.copy_:
            assert all(isinstance(t, Claimed) or t.dim() == 0 for t in tensors), f"{func}: here and there"
        here = tree_map(lambda leaf: torch.device("cpu") if leaf in asked else leaf, given, is_leaf=_device)
        found = func(*here[0], **here[1])
        goes = GPU in asked if asked else bool(there)
        return tree_map(claimed if goes else plain, found)


def _device(leaf: Any) -> bool:
    return isinstance(leaf, torch.device)


def plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Claimed) else value


RULES: dict[str, Callable[[Layout], Rule]] = {
    "whole": Whole,
    "top-k": lambda layout: ErrorMemory(layout, TopK(0.2, "bf16"), 0.2),
    "random-k": lambda layout: ErrorMemory(layout, RandomK(0.2), 0.2),
    "qsgd": lambda layout: ErrorMemory(layout, Qsgd(3, biased=True), 0.2),
    "sign": lambda layout: ErrorMemory(layout, Sign(), 0.2),
    "choco": lambda layout: Estimates(layout, TopK(0.2), 0.2),
}
SUMS: dict[str, Callable[[Layout], RunningSums]] = {
    "none": RunningSums,
    "repeat": lambda layout: RunningSums(layout, "repeat"),
    "ack": lambda layout: RunningSums(layout, "ack", lease=2),
}
CASES = [*((rule, None) for rule in RULES), *(("top-k", sums) for sums in SUMS), ("random-k", "ack")]


def lost(step: int, sender: int, receiver: int) -> bool:
    return (step + sender + 2 * receiver) % 3 == 0


def played(start: Tensor, rule: str, sums: str | None) -> tuple[Tensor, list[float]]:
    """Train, exchange over links that lose messages, stop, go on from the states, and end with dense rounds."""
    sgd = Sgd(lr=0.05)

    def fleet() -> list[Node]:
        made = None if sums is None else SUMS[sums]
        return fleet_of(
            start,
            RULES["top-k" if sums == "none" else rule],
            cuts=(5,),
            sgd=sgd,
            sums=made,
            quasi_global=True,
        )

    graph, nodes = build_graph("undirected-ring", 4), fleet()
    for step in range(6):
        if step == 3:
            states = [{name: t.cpu().clone() for name, t in node.tensors().items()} for node in nodes]
            nodes = fleet()
            for node, state in zip(nodes, states, strict=True):
                node.restore(state)
        for node in nodes:
            node.step(start[0], start[0])
        run(nodes, graph, 1, lost if sums else lambda *_: False, first=step)
    for node in nodes:
        node.merge()
    run(nodes, graph, 2, first=6)
    return xs(nodes), ws(nodes)


@pytest.mark.parametrize(("rule", "sums"), CASES)
def test_nothing_of_the_cpu_meets_what_is_on_the_gpu(rule: str, sums: str | None) -> None:
    start = normal(4, 20).float()
    expected, weights = played(start, rule, sums)
    with Strict():
        found, there = played(start.to(GPU), rule, sums)
    assert isinstance(found, Claimed)
    assert torch.equal(found.as_subclass(Tensor), expected)
    assert there == weights


def test_the_pretence_notices_mistakes() -> None:
    with Strict():
        there = torch.zeros(3, device=GPU)
        for mistake in (lambda: there + torch.ones(3), lambda: there.numpy()):
            with pytest.raises(AssertionError):
                mistake()
        assert there.device == GPU
        assert (there + 1).cpu().device.type == "cpu"
