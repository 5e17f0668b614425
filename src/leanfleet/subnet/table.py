"""Which handler knows which operation: the place to look when a node is refused, and to add one."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd as _Transposed

from leanfleet.subnet.builder import Builder, Run
from leanfleet.subnet.layers import FUNCTIONAL, MODULES, functional, get_parameter
from leanfleet.subnet.ops import (
    DROPOUT,
    Handler,
    call,
    cat,
    dropout,
    elementwise,
    opaque,
    over_channels,
    pad,
    reduce,
    spatial,
    tensors,
)  # fmt: skip
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


def handle(b: Builder, node: fx.Node) -> Run:
    """Find the layouts of a node's result, and how it runs narrow."""
    if node.op == "get_attr":
        return get_parameter(b, node, _attribute(b.root, str(node.target)))
    if node.op == "call_module":
        run = _handle_module(b, node, b.root.get_submodule(str(node.target)))
        layout = b.layout(node)
        if node.target in b.exempt_modules and layout is not None:
            b.units.fix(layout.units)
        return run
    handler = FUNCTIONS.get(node.target, opaque)
    return _handle_plain(b, node, handler)


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _handle_module(b: Builder, node: fx.Node, module: nn.Module) -> Run:
    own = [f"{node.target}.{name}" for name, _ in module.named_parameters(recurse=False)]
    # A hook may do anything, and makes the weight of the older torch.nn.utils.weight_norm.
    hooked = module._forward_hooks or module._forward_pre_hooks
    # Of all modules in the table they alone take more than what they work on.
    sized = isinstance(module, _Transposed) and len(node.args) + len(node.kwargs) > 1
    whole_weight = getattr(module, "weight", None) is None or f"{node.target}.weight" in own
    if type(module) in MODULES and whole_weight and not (hooked or sized or _in_pieces(b, node)):
        return MODULES[type(module)](b, node, module)
    return _handle_plain(b, node, opaque if hooked or sized else PLAIN_MODULES.get(type(module), opaque))


def _handle_plain(b: Builder, node: fx.Node, handler: Handler) -> Run:
    if handler not in (reshape, transpose, passing, getitem, cat) and _in_pieces(b, node):
        handler = opaque
    if handler in (getitem, cat) and any(n.name in b.shuffles for n in node.all_input_nodes):
        # Parts of what is only viewed as blocks: narrow it has no blocks.
        handler = opaque
    if handler not in (reshape, expand, getitem, split, arithmetic, size):
        b.refuse_sizes(node, (node.args, node.kwargs))
    if handler is not functional:
        b.refuse_cut_inputs(node)
    return handler(b, node)


def _in_pieces(b: Builder, node: fx.Node) -> bool:
    """Whether an input is in pieces: blocks of channels, or the parts of a split."""
    return any(n.name in b.shuffles or isinstance(b.layouts.get(n.name), list) for n in node.all_input_nodes)


def arithmetic(b: Builder, node: fx.Node) -> Run:
    """Arithmetic: on tensors elementwise, on sizes watched further."""
    if tensors(b, node):
        b.refuse_sizes(node, (node.args, node.kwargs))
        return elementwise(b, node)
    for argument in node.all_input_nodes:
        if argument.name in b.sizes_of:
            b.sizes_of[node.name] = b.sizes_of[argument.name]
    return call(node, b)


_ARITHMETIC = (
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, operator.floordiv, operator.neg, operator.pow, operator.mod, torch.add, torch.sub, torch.mul,
    torch.div, torch.maximum, torch.minimum, torch.neg, torch.pow, torch.where, operator.gt, operator.ge, operator.lt,
    operator.le, "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "neg", "pow", "masked_fill",
)  # fmt: skip
_UNARY = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.softplus, F.logsigmoid, F.softsign, torch.relu, torch.sigmoid, torch.tanh, torch.exp,
    torch.log, torch.log1p, torch.sin, torch.cos, torch.erf, torch.sign, torch.abs, torch.sqrt, torch.rsqrt,
    torch.square, torch.clamp, "relu", "relu_", "sigmoid", "tanh", "abs", "sqrt", "square", "exp", "clamp", "clamp_",
)  # fmt: skip
_SPATIAL = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate,
    F.lp_pool2d, torch.max_pool2d, torch.adaptive_avg_pool1d,
)  # fmt: skip
_PASSING = (
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type_as",
    "requires_grad_",
)

FUNCTIONS: dict[Any, Handler] = {
    **dict.fromkeys(_ARITHMETIC, arithmetic),
    **dict.fromkeys(_UNARY, elementwise),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_PASSING, passing),
    **dict.fromkeys(DROPOUT.values(), dropout),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), cat),
    **dict.fromkeys((torch.split, torch.chunk, "split", "chunk"), split),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze), reshape),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unsqueeze", "squeeze", "unflatten", "view_as", "reshape_as"), reshape
    ),
    **dict.fromkeys((torch.transpose, torch.permute, "transpose", "permute", "swapaxes"), transpose),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"), reduce),
    **dict.fromkeys(("expand", "expand_as"), expand),
    **dict.fromkeys(("size", "dim", getattr), size),
    **dict.fromkeys(
        (F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"), over_channels
    ),
    **dict.fromkeys(FUNCTIONAL, functional),
    operator.getitem: getitem,
    F.pad: pad,
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
    **dict.fromkeys((*_POOL_MODULES, *_PAD_MODULES, nn.Upsample, nn.UpsamplingNearest2d,
                     nn.UpsamplingBilinear2d), spatial),
    nn.Identity: passing,
    **dict.fromkeys((nn.Flatten, nn.Unflatten), reshape),
    nn.ChannelShuffle: channel_shuffle,
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax), over_channels),
}  # fmt: skip
