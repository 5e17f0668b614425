"""Layers with parameters: how each is cut, what it costs, and how it runs narrow (one row of the table each)."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx, nn

from leanfleet.subnet.trace import Builder, Frame, Run
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
        if transposed and module.out_channels != groups:
            b.refuse(node, b.layout(x), "is a transposed depthwise convolution with a multiplier")
    else:
        outputs = _dense_outputs(b, node, module, weight, inputs, rows, columns)
    if bias is not None:
        b.bind(bias, 0, outputs)
    b.layouts[node.name] = Layout(1, outputs)
    where = b.shape(x if transposed else node)
    coefficient = math.prod(where[2:]) * math.prod(module.kernel_size) / (1 if depthwise else groups)
    layer = weight.rpartition(".")[0]
    if depthwise:
        b.term(layer, "conv", coefficient, None, outputs)
    else:
        b.term(layer, "conv", coefficient, inputs, outputs)
    number = b.number(inputs)
    output_padding = module.output_padding if transposed else None

    def run(frame: Frame) -> Tensor:
        value, w = frame.values[x.name], frame.leaves[weight]
        narrow = groups
        if depthwise:
            narrow = frame.kept.count(number)
        else:
            factors = frame.scale(number, w)
            if factors is not None and groups > 1:
                value = value * factors.view(1, -1, *[1] * (value.ndim - 2))
            elif factors is not None:
                w = w * factors.view(*[-1 if d == columns else 1 for d in range(w.ndim)])
        if transposed:
            out: Tensor = functional(
                value,
                w,
                _leaf(frame, bias),
                module.stride,
                module.padding,
                output_padding,
                narrow,
                module.dilation,
            )
            return out
        padding = module.padding
        if module.padding_mode != "zeros":
            value = F.pad(value, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = 0
        out = functional(value, w, _leaf(frame, bias), module.stride, padding, module.dilation, narrow)
        return out

    return run


def _dense_outputs(
    b: Builder, node: fx.Node, module: Any, weight: str, inputs: Ids, rows: int, columns: int
) -> Ids:
    """Cut a convolution whose outputs are its own, grouped or not."""
    b.bind(weight, columns, inputs)
    outputs = b.write(weight, rows, module.out_channels)
    if module.groups > 1:
        b.blocks[weight] = module.groups
        b.units.equal(inputs, module.groups, node.name)
        b.units.equal(outputs, module.groups, node.name)
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
    b.term(weight.rpartition(".")[0], "linear", math.prod(b.shape(x)[1:-1]), inputs, outputs)
    number = b.number(inputs)

    def run(frame: Frame) -> Tensor:
        w = frame.leaves[weight]
        factors = frame.scale(number, w)
        if factors is not None:
            w = w * factors
        return F.linear(frame.values[x.name], w, _leaf(frame, bias))

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
    """Batch norm on batch statistics; its running averages are neither used nor touched (section 4.4)."""
    x, weight, bias = _per_channel(b, node, module, 1)

    def run(frame: Frame) -> Tensor:
        w, shift = _leaf(frame, weight), _leaf(frame, bias)
        return F.batch_norm(frame.values[x.name], None, None, w, shift, True, 0.0, module.eps)

    return run


def instance_norm(b: Builder, node: fx.Node, module: Any) -> Run:
    """Instance norm: every channel by itself."""
    x, weight, bias = _per_channel(b, node, module, 1)

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
        b.units.equal(units, module.num_groups, node.name)
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
    weight = bias = None
    if module.weight is not None:
        weight, bias = _names(b, node, module)
    inside = layout is not None and layout.dim >= first
    for name in (weight, bias):
        if name is not None and inside:
            assert layout is not None
            b.bind(name, layout.dim - first, layout.units)

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
    """A parameter or buffer used by itself: per-channel when exactly one of its dimensions is larger than 1."""
    name = str(node.target)
    if not isinstance(value, nn.Parameter):
        return lambda frame: frame.buffers[name]
    name = b.parameter(name)
    wide = [d for d, size in enumerate(value.shape) if size > 1]
    if len(wide) == 1:
        b.layouts[node.name] = Layout(wide[0], b.write(name, wide[0], value.shape[wide[0]]))
    return lambda frame: frame.leaves[name]


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
