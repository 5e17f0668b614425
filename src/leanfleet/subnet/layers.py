"""Layers with parameters: how each is cut, what it costs, and how it runs narrow (one row of the table each)."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx, nn

from leanfleet.subnet.builder import Builder, Frame, Run, layer_of
from leanfleet.subnet.ops import opaque
from leanfleet.subnet.units import Ids, Layout

Handler = Callable[[Builder, fx.Node, Any], Run]


class Functional(SimpleNamespace):
    """A functional call with parameters, dressed as the module it stands for: `weight` and `bias` are names."""


def _names(b: Builder, node: fx.Node, module: nn.Module) -> tuple[str, str | None]:
    """Return the names of a module's weight and bias."""
    if isinstance(module, Functional):
        return module.weight, module.bias
    prefix = str(node.target)
    bias = getattr(module, "bias", None)
    return b.parameter(f"{prefix}.weight"), None if bias is None else b.parameter(f"{prefix}.bias")


def _leaf(frame: Frame, name: str | None) -> Tensor | None:
    return None if name is None else frame.leaves[name]


def _input(node: fx.Node) -> fx.Node:
    value = node.args[0] if node.args else next(iter(node.kwargs.values()))
    assert isinstance(value, fx.Node)
    return value


def conv(b: Builder, node: fx.Node, module: Any) -> Run:
    """Convolution: rows follow its own kept set, columns the kept ids of its input (per concat segment)."""
    x = _input(node)
    weight, bias = _names(b, node, module)
    transposed, groups = module.transposed, module.groups
    functional = getattr(F, f"conv{'_transpose' if transposed else ''}{len(module.kernel_size)}d")
    inputs = b.units_at(x, 1)
    rows, columns = (1, 0) if transposed else (0, 1)
    depthwise = groups > 1 and groups == len(inputs)
    if depthwise:
        # Input and output channels are the same random variable.
        outputs = np.repeat(inputs, module.out_channels // groups)
        b.bind(weight, 0, inputs if transposed else outputs)
        if weight in b.exempt_parameters:
            b.units.fix(outputs)
    else:
        outputs = _dense_outputs(b, node, module, weight, inputs, rows, columns)
    if bias is not None:
        b.bind(bias, 0, outputs)
    b.layouts[node.name] = Layout(1, outputs)
    positions = b.positions(x if transposed else node, 1)
    coefficient = positions * math.prod(module.kernel_size) / (1 if depthwise else groups)
    b.term(layer_of(weight), "conv", coefficient, None if depthwise else inputs, outputs)
    number = b.number(inputs)
    options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    if transposed:
        options["output_padding"] = module.output_padding
    border = None if module.padding_mode == "zeros" else module._reversed_padding_repeated_twice
    if border is not None:
        options["padding"] = 0

    def run(frame: Frame) -> Tensor:
        value, w = frame.values[x.name], frame.leaves[weight]
        narrow = frame.kept.count(number) if depthwise else groups
        if not depthwise:
            value, w = _scaled(frame, number, value, w, None if groups > 1 else columns)
        if border is not None:
            value = F.pad(value, border, mode=module.padding_mode)
        out: Tensor = functional(value, w, _leaf(frame, bias), groups=narrow, **options)
        return out

    return run


def _scaled(
    frame: Frame, number: int, value: Tensor, weight: Tensor, columns: int | None
) -> tuple[Tensor, Tensor]:
    """Scale what a layer reads by C/n of its source: the weight's columns, or the value if they are shared."""
    factors = frame.scale(number, weight)
    if factors is None:
        return value, weight
    if columns is None:
        return value * factors.view(1, -1, *[1] * (value.ndim - 2)), weight
    return value, weight * factors.view(*[-1 if d == columns else 1 for d in range(weight.ndim)])


def _dense_outputs(
    b: Builder, node: fx.Node, module: Any, weight: str, inputs: Ids, rows: int, columns: int
) -> Ids:
    """Cut a convolution whose outputs are its own, grouped or not."""
    b.bind(weight, columns, inputs)
    outputs = b.write(weight, rows, module.out_channels)
    if module.groups > 1:
        b.blocks[weight] = module.groups
        b.equal(node, inputs, module.groups)
        b.equal(node, outputs, module.groups)
    return outputs


def linear(b: Builder, node: fx.Node, module: Any) -> Run:
    """Linear layer: columns follow the kept features of its input, rows its own kept set."""
    x = _input(node)
    weight, bias = _names(b, node, module)
    last = len(b.shape(x)) - 1
    inputs = b.units_at(x, last)
    b.bind(weight, 1, inputs)
    outputs = b.write(weight, 0, module.out_features)
    if bias is not None:
        b.bind(bias, 0, outputs)
    b.layouts[node.name] = Layout(last, outputs)
    b.term(layer_of(weight), "linear", b.positions(x, last), inputs, outputs)
    number = b.number(inputs)

    def run(frame: Frame) -> Tensor:
        value, w = _scaled(frame, number, frame.values[x.name], frame.leaves[weight], 1)
        return F.linear(value, w, _leaf(frame, bias))

    return run


def _per_channel(b: Builder, node: fx.Node, module: Any, dim: int) -> tuple[fx.Node, str | None, str | None]:
    """Bind the affine parameters of a per-channel layer to its input's channels, which pass through."""
    x = _input(node)
    units = b.units_at(x, dim)
    b.layouts[node.name] = b.layout(x)
    weight = bias = None
    if getattr(module, "weight", None) is not None:
        weight, bias = _names(b, node, module)
        for name in (weight, bias):
            if name is not None:
                b.bind(name, 0, units)
    return x, weight, bias


def batch_norm(b: Builder, node: fx.Node, module: Any) -> Run:
    """Batch norm on batch statistics; running averages over random subsets would be wrong, none is kept."""
    x, weight, bias = _per_channel(b, node, module, 1)
    b.normed.append(b.units_at(x, 1))

    def run(frame: Frame) -> Tensor:
        w, shift = _leaf(frame, weight), _leaf(frame, bias)
        return F.batch_norm(frame.values[x.name], None, None, w, shift, True, 0.0, module.eps)

    return run


def instance_norm(b: Builder, node: fx.Node, module: Any) -> Run:
    """Instance norm: every channel by itself."""
    x, weight, bias = _per_channel(b, node, module, 1)
    b.normed.append(b.units_at(x, 1))

    def run(frame: Frame) -> Tensor:
        w, shift = _leaf(frame, weight), _leaf(frame, bias)
        return F.instance_norm(frame.values[x.name], None, None, w, shift, True, 0.0, module.eps)

    return run


def group_norm(b: Builder, node: fx.Node, module: Any) -> Run:
    """Group norm: every norm group keeps the same count; one channel per group always works."""
    x, weight, bias = _per_channel(b, node, module, 1)
    units = b.units_at(x, 1)
    single = module.num_groups == len(units)
    if not single and module.num_groups > 1:
        b.equal(node, units, module.num_groups)
    b.normed.append(units)
    if not single:
        b.spanning.append(str(node.target))
    number = b.number(units)

    def run(frame: Frame) -> Tensor:
        groups = frame.kept.count(number) if single else module.num_groups
        return F.group_norm(
            frame.values[x.name], groups, _leaf(frame, weight), _leaf(frame, bias), module.eps
        )

    return run


def layer_norm(b: Builder, node: fx.Node, module: Any) -> Run:
    """Layer norm over the features that are kept; where channels are not among them, they pass through."""
    x = _input(node)
    layout, ndim = b.layout(x), len(b.shape(x))
    first = ndim - len(module.normalized_shape)
    b.layouts[node.name] = layout
    if layout is not None and layout.dim >= first:
        b.normed.append(layout.units)
        b.spanning.append(str(node.target))
    weight = bias = None
    if module.weight is not None:
        weight, bias = _names(b, node, module)
    for name in (weight, bias):
        if name is not None and layout is not None and layout.dim >= first:
            b.bind(name, layout.dim - first, layout.units)
        elif name is not None:
            b.refuse_cut(node, name)

    def run(frame: Frame) -> Tensor:
        value = frame.values[x.name]
        return F.layer_norm(value, value.shape[first:], _leaf(frame, weight), _leaf(frame, bias), module.eps)

    return run


def prelu(b: Builder, node: fx.Node, module: Any) -> Run:
    """PReLU with one slope, or one a channel."""
    if module.num_parameters == 1:
        x = _input(node)
        b.layouts[node.name] = b.layout(x)
        weight = b.parameter(f"{node.target}.weight")
    else:
        x, found, _ = _per_channel(b, node, module, 1)
        assert found is not None
        weight = found

    def run(frame: Frame) -> Tensor:
        return F.prelu(frame.values[x.name], frame.leaves[weight])

    return run


def get_parameter(b: Builder, node: fx.Node, value: Any) -> Run:
    """A parameter or constant used by itself: per-channel when exactly one of its dimensions is larger than 1."""
    name = str(node.target)
    if not isinstance(value, nn.Parameter):
        b.constants[name] = value
        return lambda frame: frame.constants[name]
    name = b.parameter(name)
    wide = [d for d, size in enumerate(value.shape) if size > 1]
    if len(wide) == 1 and not all(user.target in FUNCTIONAL for user in node.users):
        units = b.write(name, wide[0], value.shape[wide[0]], bare=True)
        b.layouts[node.name] = Layout(wide[0], units)
    return lambda frame: frame.leaves[name]


def functional(b: Builder, node: fx.Node) -> Run:
    """F.conv1d/2d/3d, F.linear, F.layer_norm with parameters of the network, as the modules of the same names."""
    order, handler = FUNCTIONAL[node.target]
    bound: dict[str, Any] = dict(zip(order, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = bound.get("weight"), bound.get("bias")
    features = bound.get("normalized_shape", ())
    given = [value for value in (weight, bias) if value is not None]
    if weight is None or not all(map(b.is_parameter, given)) or not isinstance(features, tuple | list):
        return opaque(b, node)
    b.refuse_cut_inputs(node, given)
    names = [b.parameter(str(value.target)) for value in given]
    shape = b.shape(weight)
    module = Functional(
        weight=names[0], bias=names[1] if bias is not None else None, transposed=False,
        groups=bound.get("groups", 1), kernel_size=shape[2:], out_channels=shape[0], out_features=shape[0],
        stride=bound.get("stride", 1),
        padding=bound.get("padding", 0), padding_mode="zeros", dilation=bound.get("dilation", 1),
        normalized_shape=features, eps=bound.get("eps", 1e-5),
    )  # fmt: skip
    return handler(b, node, module)


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

FUNCTIONAL: dict[Any, tuple[tuple[str, ...], Handler]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), (_CONV, conv)),
    F.linear: (("input", "weight", "bias"), linear),
    F.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps"), layer_norm),
}

MODULES: dict[type[nn.Module], Handler] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), conv),
    nn.Linear: linear,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.PReLU: prelu,
}
