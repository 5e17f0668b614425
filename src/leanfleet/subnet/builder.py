"""What is known while a traced network is walked from its input to its output, and what a run may use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from leanfleet.subnet.kept import Kept
from leanfleet.subnet.units import FIXED, Ids, Layout, Units


@dataclass
class Frame:
    """One run of the graph: the values so far, and what the run may use."""

    leaves: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
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


@dataclass(frozen=True)
class Shapes:
    """What one run of the whole network saw.

    Attributes:
        of: The shape of every value: a tuple for a tensor, a list for several, None for what is no tensor.
        per_sample: By how much every dimension grows with a further sample; the same form as `of`.
        numbers: The values that are whole numbers.
    """

    of: dict[str, Any]
    per_sample: dict[str, Any]
    numbers: dict[str, int]


@dataclass(frozen=True)
class Shuffle:
    """The first half of a channel shuffle: channels split into blocks, a form that no run takes on when cut.

    Attributes:
        layout: Of the value before it was split.
        blocks: Number of blocks, the earlier of the two dimensions.
        shape: Of the value before it was split.
        transposed: Whether the two dimensions have changed places.
    """

    layout: Layout
    blocks: int
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass
class Builder:
    """What is known while the graph is walked from inputs to outputs."""

    root: nn.Module
    shapes: Shapes
    aliases: dict[str, str]
    exempt_modules: frozenset[str]
    exempt_parameters: frozenset[str]
    units: Units = field(default_factory=Units)
    layouts: dict[str, Any] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    numbered: list[Ids] = field(default_factory=list)
    bound: dict[str, dict[int, Ids]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    sizes_of: dict[str, Layout] = field(default_factory=dict)
    shuffles: dict[str, Shuffle] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    normed: list[Ids] = field(default_factory=list)
    spanning: list[str] = field(default_factory=list)
    _wholes: list[tuple[fx.Node, str]] = field(default_factory=list)
    _numbers: dict[bytes, int] = field(default_factory=dict)

    # -- values --------------------------------------------------------------------------------------------

    def layout(self, value: Any) -> Layout | None:
        """Return the layout of an argument; None for numbers and for values that are always whole."""
        found = self.layouts.get(value.name) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Layout) else None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the whole network's shape of a tensor value."""
        return tuple(self.shapes.of[node.name])

    def known(self, value: Any) -> Any:
        """Return a number of the user's, as the whole network saw it where it was computed."""
        return self.shapes.numbers[value.name] if isinstance(value, fx.Node) else value

    def positions(self, node: fx.Node, dim: int) -> int:
        """Return how many positions per sample a value has along all dimensions but `dim`."""
        few = np.array(self.shape(node))
        many = few + np.array(self.shapes.per_sample[node.name])
        return int(np.delete(many, dim).prod() - np.delete(few, dim).prod())

    def number(self, units: Ids) -> int:
        """Return the number under which a layout's kept positions are looked up at run time."""
        content = units.tobytes()
        if content not in self._numbers:
            self._numbers[content] = len(self.numbered)
            self.numbered.append(units)
        return self._numbers[content]

    def units_at(self, node: fx.Node, dim: int) -> Ids:
        """Return the units along `dim` of a value, refusing the network if another dimension is cut."""
        layout = self.layout(node)
        size = self.shape(node)[dim]
        if layout is None or layout.dim != dim % len(self.shape(node)):
            self.refuse(node, layout, "is read with its channels along another dimension")
            return np.full(size, FIXED)
        return layout.units

    # -- refusals: they count only if the channels turn out to be droppable at the end ---------------------

    def refuse(self, node: fx.Node, layout: Layout | None, what: str) -> None:
        """Refuse the network at the end unless these channels turn out never to be dropped."""
        self.units.demand_fixed(layout, f"{describe(node)} {what}")

    def equal(self, node: fx.Node, units: Ids, blocks: int) -> None:
        """Keep the same count in each of `blocks` equal stretches of a layout."""
        self.units.equal(units, blocks, describe(node))

    def refuse_sizes(self, node: fx.Node, argument: Any) -> None:
        """Refuse the use of a channel count, which is another number in every narrow network."""
        for n in _nodes(argument):
            if n.name in self.sizes_of:
                self.refuse(node, self.sizes_of[n.name], "computes with a channel count")

    def refuse_cut(self, node: fx.Node, parameter: str) -> None:
        """Refuse the network at the end if this parameter, which `node` needs whole, is cut elsewhere."""
        self._wholes.append((node, self.parameter(parameter)))

    def is_parameter(self, value: Any) -> bool:
        """Whether an argument is a parameter of the network."""
        return isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target) in self.aliases

    def refuse_cut_inputs(self, node: fx.Node, but: Collection[fx.Node] = ()) -> None:
        """Refuse the network at the end if a parameter that this node reads by itself is cut elsewhere."""
        for value in node.all_input_nodes:
            if self.is_parameter(value) and value.name not in self.layouts and value not in but:
                self.refuse_cut(node, str(value.target))

    def check_wholes(self) -> None:
        """Turn every `refuse_cut` into demands, now that all uses of the parameters are known."""
        for node, name in self._wholes:
            for dim, units in self.bound.get(name, {}).items():
                self.refuse(node, Layout(dim, units), f"needs the whole of parameter '{name}', which is cut")

    # -- parameters ----------------------------------------------------------------------------------------

    def parameter(self, name: str) -> str:
        """Return the one name under which a shared parameter is known."""
        return self.aliases.get(name, name)

    def bind(self, name: str, dim: int, units: Ids) -> None:
        """Cut dimension `dim` of a parameter along these units; a second use ties the two."""
        name = self.parameter(name)
        known = self.bound.setdefault(name, {}).setdefault(dim, units)
        if known is not units:
            self.units.tie(known, units)

    def write(self, name: str, dim: int, count: int, *, bare: bool = False) -> Ids:
        """Return the units that a weight writes, new at its first use.

        Args:
            name: The parameter.
            dim: Its dimension that makes the channels.
            count: Size of that dimension.
            bare: The parameter is used by itself, not as the weight of a layer.
        """
        name = self.parameter(name)
        known = self.bound.setdefault(name, {})
        if dim not in known:
            layer = name if bare else layer_of(name)
            exempt = name in self.exempt_parameters
            known[dim] = np.full(count, FIXED) if exempt else self.units.new(count, layer, bare=bare)
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


def layer_of(parameter: str) -> str:
    """Return the layer that a parameter belongs to; the parameter itself if the network holds it directly."""
    return parameter.rpartition(".")[0] or parameter


def describe(node: fx.Node) -> str:
    """Return a node's name and how it reads in the user's code."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    return f"node '{node.name}' ({f'module {target}' if node.op == 'call_module' else f'{target}()'})"


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(argument, found.append)
    return found
