"""From an `nn.Module` to steps that can run narrow: torch.fx finds the operations, `Units` their channels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import TraceError, did_you_mean
from leanfleet.subnet.kept import Kept
from leanfleet.subnet.units import FIXED, Ids, Layout, Units

BATCH = 5
"""Samples in the traced example: more than one, for batch norm, and a size no view is likely to spell out."""


@dataclass
class Frame:
    """One run of the graph: the values so far, and what the run may use."""

    leaves: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    kept: Kept
    training: bool
    scaled: bool
    values: dict[str, Any] = field(default_factory=dict)

    def fill(self, argument: Any) -> Any:
        """Replace the nodes in an argument by their values."""
        if isinstance(argument, fx.Node):
            return self.values[argument.name]
        if isinstance(argument, tuple | list):
            return type(argument)(self.fill(part) for part in argument)
        if isinstance(argument, slice):
            return slice(self.fill(argument.start), self.fill(argument.stop), self.fill(argument.step))
        if isinstance(argument, dict):
            return {name: self.fill(part) for name, part in argument.items()}
        return argument

    def scale(self, layout: int, like: Tensor) -> Tensor | None:
        """Return the inverted-dropout scale of every kept position of a consumer's input."""
        factors = self.kept.scale(layout) if self.scaled else None
        return None if factors is None else factors.to(dtype=like.dtype, device=like.device)


Run = Callable[[Frame], Any]


@dataclass(frozen=True)
class Term:
    """The multiply-accumulates of one use of a layer: `coefficient * positions in * positions out`.

    Attributes:
        layer: Name of the layer or node.
        kind: "conv", "linear" or "other" (attention and whatever else is not cut).
        coefficient: Output positions times kernel area, divided by the convolution groups.
        inputs, outputs: Layout numbers; None stands for 1.
    """

    layer: str
    kind: str
    coefficient: float
    inputs: int | None
    outputs: int | None


@dataclass(frozen=True)
class Cut:
    """How one parameter is cut: a layout (or None) for its leading dimensions, in `blocks` diagonal blocks."""

    dims: tuple[int | None, ...]
    blocks: int = 1


@dataclass
class Builder:
    """What is known while the graph is walked from inputs to outputs."""

    root: nn.Module
    graph: fx.Graph
    shapes: dict[str, Any]
    macs: dict[str, float]
    keep: frozenset[str]
    units: Units = field(default_factory=Units)
    layouts: dict[str, Any] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    numbered: list[Ids] = field(default_factory=list)
    bound: dict[str, dict[int, Ids]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    sizes_of: dict[str, Layout] = field(default_factory=dict)
    shuffles: dict[str, tuple[Layout, int]] = field(default_factory=dict)
    transposed: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)
    _numbers: dict[bytes, int] = field(default_factory=dict)

    def number(self, units: Ids) -> int:
        """Return the number under which a layout's kept positions are looked up at run time."""
        content = units.tobytes()
        if content not in self._numbers:
            self._numbers[content] = len(self.numbered)
            self.numbered.append(units)
        return self._numbers[content]

    def layout(self, value: Any) -> Layout | None:
        """Return the layout of an argument; None for numbers and for values that are always whole."""
        found = self.layouts.get(value.name) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Layout) else None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the whole network's shape of a tensor value."""
        return tuple(self.shapes[node.name])

    def units_at(self, node: fx.Node, dim: int) -> Ids:
        """Return the units along `dim` of a value, refusing the network if another dimension is cut."""
        layout = self.layout(node)
        size = self.shape(node)[dim]
        if layout is None or layout.dim != dim % len(self.shape(node)):
            self.refuse(node, layout, "uses its channels along another dimension")
            return np.full(size, FIXED)
        return layout.units

    def refuse(self, node: fx.Node, layout: Layout | None, what: str) -> None:
        """Refuse the network at the end unless these channels turn out never to be dropped."""
        self.units.demand_fixed(layout, f"node '{node.name}' ({describe(node)}) {what}")

    def parameter(self, name: str) -> str:
        """Return the one name under which a shared parameter is known."""
        return self.aliases.get(name, name)

    def bind(self, name: str, dim: int, units: Ids) -> None:
        """Cut dimension `dim` of a parameter along these units; a second use ties the two."""
        name = self.parameter(name)
        known = self.bound.setdefault(name, {}).setdefault(dim, units)
        if known is not units:
            self.units.tie(known, units)

    def write(self, name: str, dim: int, count: int) -> Ids:
        """Return the units that a layer's weight writes, new at its first use."""
        name = self.parameter(name)
        known = self.bound.setdefault(name, {})
        if dim not in known:
            layer = name.rpartition(".")[0] or name
            exempt = any(layer == k or layer.startswith(f"{k}.") for k in self.keep)
            known[dim] = np.full(count, FIXED) if exempt else self.units.new(count, layer)
        return known[dim]

    def term(
        self, layer: str, kind: str, coefficient: float, inputs: Ids | None, outputs: Ids | None
    ) -> None:
        """Record a layer's multiply-accumulates."""
        numbers = [None if units is None else self.number(units) for units in (inputs, outputs)]
        self.terms.append(Term(layer, kind, coefficient, *numbers))

    def cuts(self) -> dict[str, Cut]:
        """Return how every parameter that is used is cut."""
        found = {}
        for name, dims in self.bound.items():
            numbers = [self.number(dims[d]) if d in dims else None for d in range(max(dims) + 1)]
            found[name] = Cut(tuple(numbers), self.blocks.get(name, 1))
        return found


def describe(node: fx.Node) -> str:
    """Return how a node reads in the user's code."""
    if node.op == "call_module":
        return f"module {node.target}"
    target = (
        node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    )
    return f"{target}()"


def symbolic_trace(net: nn.Module) -> fx.Graph:
    """Trace a network with torch.fx.

    Raises:
        TraceError: Control flow depends on data, or the network does something torch.fx cannot follow.
    """
    try:
        return fx.Tracer().trace(net)
    except Exception as error:  # torch.fx raises whatever the user's forward raises on a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TraceError(
            f"{type(net).__name__} cannot be traced by torch.fx: {reason}; make its forward free of branches "
            "and loops that depend on values"
        ) from error


class _Shapes(fx.Interpreter):
    """Runs the graph once and notes every value's shape; the multiply-accumulates where torch counts them."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, Any] = {}
        self.macs: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.macs[n.name] = counter.get_total_flops() / 2 / BATCH
        self.shapes[n.name] = _shapes(result)
        return result


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return [_shapes(part) for part in value] if isinstance(value, tuple | list) else None


def propagate(net: nn.Module, graph: fx.Graph, example: Tensor) -> tuple[dict[str, Any], dict[str, float]]:
    """Return every value's shape and MACs per sample, for a batch of `BATCH` samples like the example.

    Raises:
        TraceError: The example does not go through the network.
    """
    batch = example[:1].expand(BATCH, *example.shape[1:])
    for device in ("meta", "cpu"):
        # Shapes alone cost nothing on the meta device; a forward that makes tensors of its own needs a real one.
        shapes = _Shapes(fx.GraphModule(copy.deepcopy(net).to(device), graph))
        try:
            with torch.no_grad():
                shapes.run(batch.to(device))
        except Exception as error:
            failure = error
            continue
        return shapes.shapes, shapes.macs
    raise TraceError(
        f"{type(net).__name__} does not take an input of shape {tuple(example.shape[1:])}: "
        f"{str(failure).splitlines()[0]}"
    ) from failure


def check_keep(net: nn.Module, keep: Iterable[str]) -> frozenset[str]:
    """Return the layers to exempt.

    Raises:
        TraceError: A name is not a module of the network.
    """
    known = {name for name, _ in net.named_modules() if name}
    for name in keep:
        if name not in known:
            raise TraceError(
                f"keep names '{name}', which is no layer of {type(net).__name__}{did_you_mean(name, known)}"
            )
    return frozenset(keep)


def positions(shape: tuple[int, ...]) -> int:
    """Return the number of spatial positions of an N x C x ... value."""
    return math.prod(shape[2:])
