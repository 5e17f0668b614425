"""Views: operations that move, split or merely count channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from leanfleet.subnet.ops import call, elementwise, tensors
from leanfleet.subnet.reshape import follow
from leanfleet.subnet.trace import Builder, Frame, Run
from leanfleet.subnet.units import Ids, Layout


def split(b: Builder, node: fx.Node) -> Run:
    """Split and chunk: each piece keeps its own range of ids, and gets its own rate."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    shapes = b.shapes[node.name]
    if layout is None or dim % len(b.shape(value)) != layout.dim:
        b.layouts[node.name] = [layout] * len(shapes)
        return call(node, b)
    place = layout.dim
    ends = np.cumsum([shape[place] for shape in shapes])
    pieces = np.split(layout.units, ends[:-1])
    b.units.cut(pieces, node.name)
    b.layouts[node.name] = [Layout(place, piece) for piece in pieces]
    numbers = [b.number(piece) for piece in pieces]

    def run(frame: Frame) -> Any:
        sizes = [frame.kept.count(number) for number in numbers]
        return frame.values[value.name].split(sizes, place)

    return run


def getitem(b: Builder, node: fx.Node) -> Run:
    """Indexing: a piece of a split, a size, or a slice."""
    value, index = node.args
    assert isinstance(value, fx.Node)
    if value.name in b.sizes_of:
        if isinstance(index, int) and index % len(b.shapes[value.name]) != b.sizes_of[value.name].dim:
            return call(node, b)
        b.sizes_of[node.name] = b.sizes_of[value.name]
        return call(node, b)
    found = b.layouts.get(value.name)
    if isinstance(found, list):
        b.layouts[node.name] = found[index] if isinstance(index, int) else None
        return call(node, b)
    layout = b.layout(value)
    if layout is None:
        return call(node, b)
    return _slice(b, node, value, layout, index if isinstance(index, tuple) else (index,))


def _slice(b: Builder, node: fx.Node, value: fx.Node, layout: Layout, index: tuple[Any, ...]) -> Run:
    plain = all(isinstance(part, slice | int) for part in index)
    own = index[layout.dim] if plain and len(index) > layout.dim else slice(None)
    bounds = (own.start, own.stop, own.step) if isinstance(own, slice) else (0, 0, None)
    if (
        not plain
        or not isinstance(own, slice)
        or own.step not in (None, 1)
        or any(isinstance(v, fx.Node) for v in bounds)
    ):
        b.refuse(node, layout, "picks channels by index")
        return call(node, b)
    dim = layout.dim - sum(isinstance(part, int) for part in index[: layout.dim])
    whole = len(layout.units)
    start, stop, _ = own.indices(whole)
    if (start, stop) == (0, whole):
        b.layouts[node.name] = Layout(dim, layout.units)
        return call(node, b)
    before, piece, after = layout.units[:start], layout.units[start:stop], layout.units[stop:]
    b.units.cut([before, piece, after], node.name)
    b.layouts[node.name] = Layout(dim, piece)
    first, count = b.number(before), b.number(piece)

    def run(frame: Frame) -> Any:
        at, size = frame.kept.count(first), frame.kept.count(count)
        narrow = tuple(slice(at, at + size) if d == layout.dim else part for d, part in enumerate(index))
        return frame.values[value.name][frame.fill(narrow)]

    return run


def size(b: Builder, node: fx.Node) -> Run:
    """size, shape, dim: numbers; those that count channels are watched."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    layout = b.layout(value)
    attribute = node.args[1] if len(node.args) > 1 else None
    if layout is not None and node.target is getattr and attribute != "shape":
        b.refuse(node, layout, f"reads the attribute {attribute}")
    elif layout is not None and node.target != "dim":
        one = attribute if isinstance(attribute, int) else None
        if one is None or one % len(b.shape(value)) == layout.dim:
            b.sizes_of[node.name] = layout
    return call(node, b)


def reshape(b: Builder, node: fx.Node) -> Run:
    """view, reshape, flatten, (un)squeeze: a size that counts channels is rewritten, whatever was written there."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is None:
        return call(node, b)
    before, after = b.shape(value), b.shape(node)
    shuffle = b.shuffles.get(value.name)
    if shuffle is not None:
        return _end_shuffle(b, node, value, *shuffle)
    found = follow(before, after, layout.dim) if before[0] == after[0] else None
    if found is None:
        b.refuse(
            node, layout, f"turns {before[1:]} into {after[1:]}, which mixes channels with other dimensions"
        )
        return call(node, b)
    if found.split > 1:
        b.shuffles[node.name] = (layout, found.split)
        b.layouts[node.name] = layout
        # Until the matching reshape the value keeps its old form.
        return lambda frame: frame.values[value.name]
    units = np.repeat(layout.units, found.repeat)
    b.layouts[node.name] = Layout(found.dim, units)
    shape = [-1, *after[1:]]
    number = b.number(units)

    def run(frame: Frame) -> Tensor:
        shape[found.dim] = frame.kept.count(number)
        out: Tensor = frame.values[value.name].reshape(shape)
        return out

    return run


def _end_shuffle(b: Builder, node: fx.Node, value: fx.Node, layout: Layout, blocks: int) -> Run:
    """Channel shuffle: ids are permuted; the packed value is brought into the order of the new ids."""
    if b.shape(node)[layout.dim] != len(layout.units) or value.name not in b.transposed:
        b.refuse(node, layout, "splits its channels into blocks")
        return call(node, b)
    order = np.arange(len(layout.units)).reshape(blocks, -1).T.reshape(-1)
    return _permuted(b, node, value, layout, order)


def _permuted(b: Builder, node: fx.Node, value: fx.Node, layout: Layout, order: Ids) -> Run:
    b.layouts[node.name] = Layout(layout.dim, layout.units[order])
    source, target = b.number(layout.units), b.number(layout.units[order])
    whole_order = torch.from_numpy(order)

    def run(frame: Frame) -> Tensor:
        x: Tensor = frame.values[value.name]
        ids_in, ids_out = frame.kept.ids(source), frame.kept.ids(target)
        picks = whole_order
        if ids_in is not None and ids_out is not None:
            picks = torch.searchsorted(ids_in, whole_order[ids_out])
        return x.index_select(layout.dim, picks.to(x.device))

    return run


def channel_shuffle(b: Builder, node: fx.Node) -> Run:
    """nn.ChannelShuffle and F.channel_shuffle."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is None:
        return call(node, b)
    if node.op == "call_module":
        blocks: Any = b.root.get_submodule(str(node.target)).groups
    else:
        blocks = node.args[1] if len(node.args) > 1 else node.kwargs["groups"]
    order = np.arange(len(layout.units)).reshape(int(blocks), -1).T.reshape(-1)
    return _permuted(b, node, value, layout, order)


def transpose(b: Builder, node: fx.Node) -> Run:
    """Transpose and permute: the channel dimension moves along."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is None:
        return call(node, b)
    ndim = len(b.shape(value))
    rest: Any = node.args[1:] or tuple(node.kwargs.values())
    if node.target in ("permute", torch.permute):
        order = [d % ndim for d in (rest[0] if isinstance(rest[0], tuple | list) else rest)]
    else:
        order = list(range(ndim))
        first, second = (d % ndim for d in rest)
        order[first], order[second] = second, first
    if value.name in b.shuffles:
        blocks_first = layout.dim
        if {blocks_first, blocks_first + 1} != {d for d, to in enumerate(order) if d != to}:
            b.refuse(node, layout, "permutes blocks of channels other than in a channel shuffle")
        b.shuffles[node.name], b.layouts[node.name] = b.shuffles[value.name], layout
        b.transposed.add(node.name)
        return lambda frame: frame.values[value.name]
    b.layouts[node.name] = Layout(order.index(layout.dim), layout.units)
    return call(node, b)


def passing(b: Builder, node: fx.Node) -> Run:
    """contiguous, clone, to, ...: nothing moves."""
    value = tensors(b, node)[0]
    b.layouts[node.name] = b.layout(value)
    if value.name in b.shuffles:
        b.shuffles[node.name] = b.shuffles[value.name]
        if value.name in b.transposed:
            b.transposed.add(node.name)
    return call(node, b)


def expand(b: Builder, node: fx.Node) -> Run:
    """Expand and expand_as: other dimensions may grow, channels stay as many as they are."""
    value, *rest = tensors(b, node)
    if rest:
        return elementwise(b, node)
    layout = b.layout(value)
    if layout is None:
        return call(node, b)
    place = layout.dim + len(b.shape(node)) - len(b.shape(value))
    b.layouts[node.name] = Layout(place, layout.units)
    shape = [-1 if d in (0, place) else n for d, n in enumerate(b.shape(node))]
    return lambda frame: frame.values[value.name].expand(shape)
