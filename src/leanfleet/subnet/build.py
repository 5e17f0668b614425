"""A network becomes steps, layouts and counts: the whole way from `nn.Module` to what a plan needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from leanfleet.errors import TraceError
from leanfleet.subnet.builder import Builder, Cut, Run, Term, describe
from leanfleet.subnet.kept import Layouts
from leanfleet.subnet.table import handle
from leanfleet.subnet.trace import aliases_of, check_keep, macs_of_nodes, own_copy, shapes_of, symbolic_trace
from leanfleet.subnet.units import Ids


@dataclass(frozen=True)
class Step:
    """One operation: the value it makes, how, and the values that nobody needs after it."""

    name: str
    run: Run
    frees: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """A network taken apart; see `SubnetPlan`."""

    steps: tuple[Step, ...]
    input: str
    output: str
    shape: torch.Size
    layouts: Layouts
    cuts: Mapping[str, Cut]
    terms: tuple[Term, ...]
    constants: Mapping[str, Tensor]
    parameters: Mapping[str, torch.Size]
    frozen: frozenset[str]
    normed: Ids
    spanning: tuple[str, ...]


def build(net: nn.Module, example: Tensor, keep: Iterable[str]) -> Traced:
    """Take a network apart.

    Raises:
        TraceError: torch.fx cannot trace the network, or a node cannot be cut; the message names it.
    """
    modules, parameters = check_keep(net, keep)
    root = own_copy(net)
    graph = symbolic_trace(root)
    nodes = list(graph.nodes)
    output = nodes[-1].args[0]
    if not isinstance(output, fx.Node):
        raise TraceError(f"{type(net).__name__} must return one tensor, its forward returns {output}")
    shapes = shapes_of(root, graph, example)
    b = Builder(root, shapes, aliases_of(root), modules, parameters)
    runs = {node.name: _handle(b, node) for node in nodes if node.op not in ("placeholder", "output")}
    layout = b.layout(output)
    if layout is not None:
        b.units.fix(layout.units)
    b.check_wholes()
    return Traced(
        steps=_steps(runs, nodes, output.name),
        input=next(node.name for node in nodes if node.op == "placeholder"),
        output=output.name,
        shape=example.shape[1:],
        cuts=b.cuts(),
        terms=_counted(b.terms, root, graph, example),
        # Last: the steps above have numbered all layouts.
        layouts=Layouts(b.numbered, b.units.resolve()),
        constants=b.constants,
        parameters={name: p.shape for name, p in root.named_parameters()},
        frozen=frozenset(name for name, p in root.named_parameters() if not p.requires_grad),
        normed=np.concatenate([np.empty(0, dtype=np.int64), *b.normed]),
        spanning=tuple(b.spanning),
    )


def _handle(b: Builder, node: fx.Node) -> Run:
    try:
        return handle(b, node)
    except Exception as error:  # arguments in a form that the operation's handler does not expect
        raise TraceError(f"{describe(node)} is called in a way that is not understood ({error!r})") from error


def _steps(runs: Mapping[str, Run], nodes: list[fx.Node], output: str) -> tuple[Step, ...]:
    last_use = {n.name: node.name for node in nodes for n in node.all_input_nodes}
    frees: dict[str, list[str]] = {}
    for name, user in last_use.items():
        if name != output:
            frees.setdefault(user, []).append(name)
    return tuple(Step(name, run, tuple(frees.get(name, ()))) for name, run in runs.items())


def _counted(terms: list[Term], root: nn.Module, graph: fx.Graph, example: Tensor) -> tuple[Term, ...]:
    """Fill in the MACs of what is not cut; what has none is no term."""
    uncut = [term.layer for term in terms if term.kind == "other"]
    macs = macs_of_nodes(root, graph, example, uncut) if uncut else {}
    filled = [replace(t, coefficient=macs[t.layer]) if t.kind == "other" else t for t in terms]
    return tuple(term for term in filled if term.coefficient)
