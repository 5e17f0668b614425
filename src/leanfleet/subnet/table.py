"""Which handler knows which operation: the place to look when a node is refused, and to add one."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from leanfleet.subnet.layers import Functional, conv, linear
from leanfleet.subnet.ops import (
    DROPOUT,
    Handler,
    call,
    cat,
    dropout,
    elementwise,
    opaque,
    pad,
    reduce,
    spatial,
    tensors,
)  # fmt: skip
from leanfleet.subnet.trace import Builder, Run, describe
from leanfleet.subnet.views import (
    channel_shuffle,
    expand,
    getitem,
    passing,
    reshape,
    size,
    split,
    transpose,
)  # fmt: skip


def arithmetic(b: Builder, node: fx.Node) -> Run:
    """Arithmetic: on tensors elementwise, on sizes watched further."""
    if tensors(b, node):
        return elementwise(b, node)
    for argument in node.all_input_nodes:
        if argument.name in b.sizes_of:
            b.sizes_of[node.name] = b.sizes_of[argument.name]
    return call(node, b)


def functional_conv(b: Builder, node: fx.Node) -> Run:
    """F.conv1d/2d/3d with a parameter of the network as weight."""
    order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    bound: dict[str, Any] = dict(zip(order, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = bound["weight"], bound.get("bias")
    if not _is_parameter(b, weight) or not (bias is None or _is_parameter(b, bias)):
        return opaque(b, node)
    shape = b.shape(weight)
    groups = bound.get("groups", 1)
    module = Functional(
        weight=b.parameter(str(weight.target)), bias=bias and b.parameter(str(bias.target)), transposed=False,
        groups=groups, kernel_size=shape[2:], out_channels=shape[0], stride=bound.get("stride", 1),
        padding=bound.get("padding", 0), padding_mode="zeros", dilation=bound.get("dilation", 1),
    )  # fmt: skip
    return conv(b, node, module)


def functional_linear(b: Builder, node: fx.Node) -> Run:
    """F.linear with a parameter of the network as weight."""
    bound: dict[str, Any] = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(
        node.kwargs
    )
    weight, bias = bound["weight"], bound.get("bias")
    if not _is_parameter(b, weight) or not (bias is None or _is_parameter(b, bias)):
        return opaque(b, node)
    names = Functional(
        weight=b.parameter(str(weight.target)), bias=bias and b.parameter(str(bias.target)),
        out_features=b.shape(weight)[0],
    )  # fmt: skip
    return linear(b, node, names)


def _is_parameter(b: Builder, value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target) in b.aliases


def check_sizes(b: Builder, node: fx.Node, handler: Handler) -> None:
    """Refuse arithmetic with a channel count anywhere but in a view, where it is rewritten."""
    if handler in (reshape, expand, getitem, arithmetic, size):
        return
    for argument in node.all_input_nodes:
        if argument.name in b.sizes_of:
            what = f"computes with a channel count ({describe(argument)})"
            b.refuse(node, b.sizes_of[argument.name], what)


_ARITHMETIC = (
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, operator.floordiv, operator.neg, operator.pow, operator.mod, torch.add, torch.sub, torch.mul,
    torch.div, torch.maximum, torch.minimum, torch.neg, torch.pow, torch.where, "add", "add_", "sub", "sub_", "mul",
    "mul_", "div", "div_", "neg", "pow",
)  # fmt: skip
_UNARY = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.softplus, F.logsigmoid, F.softsign, torch.relu, torch.sigmoid, torch.tanh, torch.exp,
    torch.abs, torch.sqrt, torch.square, torch.clamp, "relu", "relu_", "sigmoid", "tanh", "clamp", "abs", "sqrt",
    "square", "exp", "clamp_",
)  # fmt: skip
_SPATIAL = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate,
    F.lp_pool2d, torch.max_pool2d, torch.adaptive_avg_pool1d,
)  # fmt: skip
_PASSING = ("contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16", "requires_grad_")

FUNCTIONS: dict[Any, Handler] = {
    **dict.fromkeys(_ARITHMETIC, arithmetic),
    **dict.fromkeys(_UNARY, elementwise),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_PASSING, passing),
    **dict.fromkeys(DROPOUT.values(), dropout),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), cat),
    **dict.fromkeys((torch.split, torch.chunk, "split", "chunk"), split),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze), reshape),
    **dict.fromkeys(("view", "reshape", "flatten", "unsqueeze", "squeeze", "unflatten", "view_as"), reshape),
    **dict.fromkeys((torch.transpose, torch.permute, "transpose", "permute", "swapaxes"), transpose),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"), reduce),
    **dict.fromkeys(("expand", "expand_as"), expand),
    **dict.fromkeys(("size", "dim", getattr), size),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), functional_conv),
    operator.getitem: getitem,
    F.pad: pad,
    F.linear: functional_linear,
    F.channel_shuffle: channel_shuffle,
    torch.channel_shuffle: channel_shuffle,
}

_PAD_MODULES = [
    getattr(nn, f"{kind}Pad{d}d")
    for kind in ("Zero", "Constant", "Reflection", "Replication")
    for d in (1, 2)
]
_POOL_MODULES = [
    getattr(nn, f"{kind}Pool{d}d") for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for d in (1, 2, 3)
]

PLAIN_MODULES: dict[type[nn.Module], Handler] = {
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
         nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.LogSigmoid, nn.Softsign), elementwise),
    **dict.fromkeys(tuple(DROPOUT), dropout),
    **dict.fromkeys((*_POOL_MODULES, *_PAD_MODULES, nn.Upsample, nn.UpsamplingBilinear2d), spatial),
    nn.Identity: passing,
    **dict.fromkeys((nn.Flatten, nn.Unflatten), reshape),
    nn.ChannelShuffle: channel_shuffle,
}  # fmt: skip
