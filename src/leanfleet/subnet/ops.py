"""Operations without parameters that leave channels where they are, join them, or cannot be cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from leanfleet.subnet.trace import Builder, Frame, Run
from leanfleet.subnet.units import FIXED, Ids, Layout

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
    return [n for n in node.all_input_nodes if isinstance(b.shapes[n.name], tuple)]


def elementwise(b: Builder, node: fx.Node) -> Run:
    """Elementwise operations: channels at one place are tied across all inputs (residual adds, gates)."""
    shape = b.shape(node)
    units: Ids | None = None
    dim = None
    for value in tensors(b, node):
        layout = b.layout(value)
        if layout is None:
            continue
        place = layout.dim + len(shape) - len(b.shape(value))
        if dim not in (None, place) or shape[place] != len(layout.units):
            b.refuse(node, layout, "combines channels that lie along different dimensions")
        elif units is None:
            units, dim = layout.units, place
        else:
            b.units.tie(units, layout.units)
    if units is not None and dim is not None:
        for value in tensors(b, node):
            own = b.shape(value)
            place = dim - len(shape) + len(own)
            if b.layout(value) is None and place >= 0 and own[place] != 1:
                b.units.fix(units)
        b.layouts[node.name] = Layout(dim, units)
    return call(node, b)


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
    if layout is not None and (layout.dim != 1 or b.shape(node)[:2] != b.shape(value)[:2]):
        b.refuse(node, layout, "works across its channel dimension")
        layout = None
    b.layouts[node.name] = layout
    return call(node, b)


def pad(b: Builder, node: fx.Node) -> Run:
    """F.pad: padded channels are always there."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is not None:
        widths = list(node.args[1] if len(node.args) > 1 else node.kwargs["pad"])  # type: ignore[arg-type]
        at = 2 * (len(b.shape(value)) - 1 - layout.dim)
        before, after = (widths + [0] * (at + 2))[at : at + 2]
        if before < 0 or after < 0:
            b.refuse(node, layout, "cuts channels off by a negative padding")
            before = after = 0
        units = np.concatenate([np.full(before, FIXED), layout.units, np.full(after, FIXED)])
        b.layouts[node.name] = Layout(layout.dim, units)
    return call(node, b)


def cat(b: Builder, node: fx.Node) -> Run:
    """Concatenation: the kept ids of the parts, each moved by its offset."""
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    place = dim % len(b.shape(node))
    layouts = [b.layout(p) for p in parts]
    if any(found is not None and found.dim == place for found in layouts):
        units = []
        for part, found in zip(parts, layouts, strict=True):
            if found is not None and found.dim != place:
                b.refuse(node, found, "joins values whose channels lie along different dimensions")
                found = None
            units.append(np.full(b.shape(part)[place], FIXED) if found is None else found.units)
        b.layouts[node.name] = Layout(place, np.concatenate(units))
        return call(node, b)
    return _cat_elsewhere(b, node, layouts)


def _cat_elsewhere(b: Builder, node: fx.Node, layouts: Sequence[Layout | None]) -> Run:
    known = [found for found in layouts if found is not None]
    for found in known[1:]:
        if found.dim != known[0].dim:
            b.refuse(node, found, "joins values whose channels lie along different dimensions")
        else:
            b.units.tie(known[0].units, found.units)
    if known:
        if len(known) < len(layouts):
            b.units.fix(known[0].units)
        b.layouts[node.name] = known[0]
    return call(node, b)


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
    if b.macs.get(node.name):
        b.term(node.name, "other", b.macs[node.name], None, None)
    if node.op != "call_module":
        return call(node, b)
    prefix = f"{node.target}."
    module = b.root.get_submodule(str(node.target))
    names = {name: b.parameter(prefix + name) for name, _ in module.named_parameters()}
    args, kwargs = node.args, node.kwargs

    def run(frame: Frame) -> Any:
        state = {own: frame.leaves[name] for own, name in names.items()}
        return torch.func.functional_call(module, state, frame.fill(args), frame.fill(kwargs))

    return run


DROPOUT: dict[Any, Callable[..., Any]] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
}
