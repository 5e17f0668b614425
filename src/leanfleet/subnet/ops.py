"""Operations without parameters that leave channels where they are, join them, or cannot be cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from leanfleet.subnet.builder import Builder, Frame, Run, Term, describe
from leanfleet.subnet.units import FIXED, Layout

Handler = Callable[[Builder, fx.Node], Run]


def as_written(node: fx.Node, function: Callable[..., Any]) -> Run:
    """Run a call with the arguments it was written with."""
    args, kwargs = node.args, node.kwargs
    if len(args) == 1 and isinstance(args[0], fx.Node) and not kwargs:
        name = args[0].name
        return lambda frame: function(frame.values[name])
    return lambda frame: function(*frame.fill(args), **frame.fill(kwargs))


def call(node: fx.Node, b: Builder) -> Run:
    """Run a node's own function, method or module as written."""
    if node.op == "call_module":
        return as_written(node, b.root.get_submodule(str(node.target)))
    if node.op == "call_method":
        name = str(node.target)
        return as_written(node, lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs))
    assert callable(node.target)
    return as_written(node, node.target)


def tensors(b: Builder, node: fx.Node) -> list[fx.Node]:
    """Return the inputs of a node that are tensors."""
    return [n for n in node.all_input_nodes if isinstance(b.shapes.of[n.name], tuple)]


def elementwise(b: Builder, node: fx.Node) -> Run:
    """Elementwise operations: channels at one place are tied across all inputs (residual adds, gates)."""
    shape = b.shape(node)
    found: Layout | None = None
    for value in tensors(b, node):
        layout = b.layout(value)
        place = 0 if layout is None else layout.dim + len(shape) - len(b.shape(value))
        if layout is None:
            continue
        if len(layout.units) == 1 < shape[place]:
            # One channel for all, as of a gate over places: it is there for whichever are kept.
            b.units.fix(layout.units)
            continue
        if len(layout.units) != shape[place] or (found is not None and found.dim != place):
            for crossed in (layout, found):
                b.refuse(node, crossed, "combines channels that lie along different dimensions")
        elif found is None:
            found = Layout(place, layout.units)
        else:
            b.units.tie(found.units, layout.units)
    if found is not None:
        b.layouts[node.name] = found
        _fix_to_whole(b, node, found)
    return call(node, b)


def _fix_to_whole(b: Builder, node: fx.Node, found: Layout) -> None:
    """Never drop channels that meet a value which is always whole (positions, say)."""
    for value in tensors(b, node):
        own = b.shape(value)
        place = found.dim - len(b.shape(node)) + len(own)
        if b.layout(value) is None and place >= 0 and own[place] != 1:
            b.units.fix(found.units)


def over_channels(b: Builder, node: fx.Node) -> Run:
    """Softmax: along other dimensions elementwise; over channels it needs them all, so none is ever dropped."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if node.op == "call_module":
        dim: Any = b.root.get_submodule(str(node.target)).dim
    else:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if layout is not None and (dim is None or dim % len(b.shape(value)) == layout.dim):
        b.units.fix(layout.units)
    return elementwise(b, node)


def dropout(b: Builder, node: fx.Node) -> Run:
    """Dropout of activations: on while training only, whatever the traced value of its flag."""
    value = tensors(b, node)[0]
    b.layouts[node.name] = b.layout(value)
    function: Any
    if node.op == "call_module":
        module: Any = b.root.get_submodule(str(node.target))
        rate, function = module.p, DROPOUT[type(module)]
    else:
        rate = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        function = node.target
    return lambda frame: function(frame.values[value.name], p=rate, training=frame.training)


def spatial(b: Builder, node: fx.Node) -> Run:
    """Pooling, spatial padding, interpolation: every channel by itself."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is not None:
        module = node.op == "call_module"
        name = type(b.root.get_submodule(str(node.target))).__name__ if module else describe(node)
        dims = re.search(r"([123])d\b", name)
        # A 2d pooling takes three dimensions for one image, and would then pool over the channels.
        unbatched = dims is not None and int(dims[1]) + 2 != len(b.shape(value))
        if layout.dim != 1 or unbatched or b.shape(node)[:2] != b.shape(value)[:2]:
            b.refuse(node, layout, "works across its channel dimension")
        else:
            b.layouts[node.name] = layout
    return call(node, b)


def pad(b: Builder, node: fx.Node) -> Run:
    """F.pad: padded channels are always there."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is None:
        return call(node, b)
    widths: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    at = 2 * (len(b.shape(value)) - 1 - layout.dim)
    before, after = (b.known(width) for width in [*widths, *[0] * (at + 2)][at : at + 2])
    if before < 0 or after < 0 or (before + after > 0 and mode != "constant"):
        b.refuse(node, layout, "cuts channels off, or pads them with copies of others")
    else:
        units = np.concatenate([np.full(before, FIXED), layout.units, np.full(after, FIXED)])
        b.layouts[node.name] = Layout(layout.dim, units)
    return call(node, b)


def cat(b: Builder, node: fx.Node) -> Run:
    """Concatenation: the kept ids of the parts, each moved by its offset."""
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    place = dim % len(b.shape(node))
    if isinstance(parts, fx.Node):
        # The pieces of a split, joined again.
        shapes, layouts = (
            b.shapes.of[parts.name],
            b.layouts.get(parts.name, [None] * len(b.shapes.of[parts.name])),
        )
    else:
        shapes, layouts = [b.shape(p) for p in parts], [b.layout(p) for p in parts]
    dims = {found.dim for found in layouts if found is not None}
    if len(dims) > 1:
        for found in layouts:
            b.refuse(node, found, "joins values whose channels lie along different dimensions")
    elif dims == {place}:
        units = [
            np.full(shape[place], FIXED) if found is None else found.units
            for shape, found in zip(shapes, layouts, strict=True)
        ]
        b.layouts[node.name] = Layout(place, np.concatenate(units))
    elif dims:
        _tie_parts(b, node, layouts)
    return call(node, b)


def _tie_parts(b: Builder, node: fx.Node, layouts: Sequence[Layout | None]) -> None:
    """Join along another dimension than the channels: they must be the same in all parts."""
    first, *others = (found for found in layouts if found is not None)
    for other in others:
        b.units.tie(first.units, other.units)
    if len(others) + 1 < len(layouts):
        b.units.fix(first.units)
    b.layouts[node.name] = first


def reduce(b: Builder, node: fx.Node) -> Run:
    """mean, sum, amax, ... over other dimensions than the channels."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is None:
        return call(node, b)
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
    ndim = len(b.shape(value))
    gone = {d % ndim for d in ((dims,) if isinstance(dims, int) else dims or range(ndim))}
    if layout.dim in gone:
        b.refuse(node, layout, "reduces over its channels")
        return call(node, b)
    kept_dims = len(b.shape(node)) == ndim
    place = layout.dim if kept_dims else layout.dim - sum(d < layout.dim for d in gone)
    b.layouts[node.name] = Layout(place, layout.units)
    return call(node, b)


def opaque(b: Builder, node: fx.Node) -> Run:
    """What cannot be cut: every input must be whole, and its work counts in full."""
    for value in node.all_input_nodes:
        found = b.layouts.get(value.name)
        for layout in found if isinstance(found, list) else [found]:
            b.refuse(node, layout, "cannot be cut along channels")
    b.refuse_cut_inputs(node)
    if tensors(b, node):
        # Its MACs are filled in once all such nodes are known.
        b.terms.append(Term(node.name, "other", 0.0, None, None))
    if node.op != "call_module":
        return call(node, b)
    prefix = f"{node.target}."
    module = b.root.get_submodule(str(node.target))
    names = {name: b.parameter(prefix + name) for name, _ in module.named_parameters()}
    constants = {name: prefix + name for name, _ in module.named_buffers()}
    b.constants.update({prefix + name: buffer for name, buffer in module.named_buffers()})
    for name in names.values():
        b.refuse_cut(node, name)
    args, kwargs = node.args, node.kwargs

    def run(frame: Frame) -> Any:
        module.train(frame.training)
        state = {own: frame.leaves[name] for own, name in names.items()}
        state |= {own: frame.constants[name] for own, name in constants.items()}
        return torch.func.functional_call(module, state, frame.fill(args), frame.fill(kwargs))

    return run


DROPOUT: dict[Any, Callable[..., Any]] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
}
