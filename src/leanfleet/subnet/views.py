"""Views: operations that move, split or merely count channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from leanfleet.subnet.builder import Builder, Frame, Run, Shuffle
from leanfleet.subnet.ops import call, elementwise, tensors
from leanfleet.subnet.reshape import follow
from leanfleet.subnet.units import Layout


def split(b: Builder, node: fx.Node) -> Run:
    """Split and chunk: each piece keeps its own range of ids, and gets its own rate."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    shapes = b.shapes.of[node.name]
    if layout is None or dim % len(b.shape(value)) != layout.dim:
        b.refuse_sizes(node, (node.args[1:], node.kwargs))
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
        return _size_item(b, node, value, index)
    found = b.layouts.get(value.name)
    if isinstance(found, list):
        b.layouts[node.name] = found[index]  # type: ignore[index]
        return call(node, b)
    layout = b.layout(value)
    if layout is None:
        b.refuse_sizes(node, index)
        return call(node, b)
    return _slice(b, node, value, layout, index if isinstance(index, tuple) else (index,))


def _size_item(b: Builder, node: fx.Node, value: fx.Node, index: Any) -> Run:
    layout = b.sizes_of[value.name]
    # What is computed from a shape is watched as a whole.
    direct = value.target in ("size", getattr)
    if not direct or layout.dim in np.atleast_1d(np.arange(len(b.shapes.of[value.name]))[index]):
        b.sizes_of[node.name] = layout
    return call(node, b)


def _slice(b: Builder, node: fx.Node, value: fx.Node, layout: Layout, index: tuple[Any, ...]) -> Run:
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = len(b.shape(value)) - len(index) + 1
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    index += (slice(None),) * (layout.dim + 1 - len(index))
    own = index[layout.dim]
    if not all(isinstance(part, slice | int) for part in index) or not isinstance(own, slice):
        b.refuse(node, layout, "picks channels by index")
        return call(node, b)
    b.refuse_sizes(node, [part for d, part in enumerate(index) if d != layout.dim])
    start, stop, step = slice(*map(b.known, (own.start, own.stop, own.step))).indices(len(layout.units))
    if step != 1:
        b.refuse(node, layout, "picks channels in steps")
        return call(node, b)
    before, piece, after = np.split(layout.units, [start, max(start, stop)])
    if len(before) or len(after):
        b.units.cut([before, piece, after], node.name)
    dim = layout.dim - sum(isinstance(part, int) for part in index[: layout.dim])
    b.layouts[node.name] = Layout(dim, piece)
    first, count = b.number(before), b.number(piece)

    def run(frame: Frame) -> Any:
        at, size = frame.kept.count(first), frame.kept.count(count)
        narrow = tuple(slice(at, at + size) if d == layout.dim else part for d, part in enumerate(index))
        return frame.values[value.name][frame.fill(narrow)]

    return run


_HARMLESS = ("device", "dtype", "ndim", "is_cuda", "requires_grad")


def size(b: Builder, node: fx.Node) -> Run:
    """size, shape, dim: numbers; those that count channels are watched."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    layout = b.layout(value)
    attribute = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if layout is None or node.target == "dim" or attribute in _HARMLESS:
        return call(node, b)
    if node.target is getattr and attribute != "shape":
        b.refuse(node, layout, f"reads the attribute {attribute}")
    elif not isinstance(attribute, int) or attribute % len(b.shape(value)) == layout.dim:
        b.sizes_of[node.name] = layout
    return call(node, b)


def reshape(b: Builder, node: fx.Node) -> Run:
    """view, reshape, flatten, (un)squeeze: a size that counts channels is rewritten, whatever was written there."""
    value = tensors(b, node)[0]
    layout = b.layout(value)
    if layout is None:
        b.refuse_sizes(node, (node.args[1:], node.kwargs))
        return call(node, b)
    if value.name in b.shuffles:
        return _end_shuffle(b, node, value, b.shuffles[value.name])
    before, after = b.shape(value), b.shape(node)
    found = follow(before, after, layout.dim)
    free = [d for d, more in enumerate(b.shapes.per_sample[node.name]) if more]
    if found is None or len(free) > 1:
        what = f"turns {before[1:]} into {after[1:]}, which mixes channels with other dimensions"
        b.refuse(node, layout, what)
        return call(node, b)
    if found.split > 1:
        return _begin_shuffle(b, node, value, Shuffle(layout, found.split, before))
    units = np.repeat(layout.units, found.repeat)
    b.layouts[node.name] = Layout(found.dim, units)
    shape = [-1 if d in free else n for d, n in enumerate(after)]
    number = b.number(units)

    def run(frame: Frame) -> Tensor:
        narrow = [frame.kept.count(number) if d == found.dim else n for d, n in enumerate(shape)]
        out: Tensor = frame.values[value.name].reshape(narrow)
        return out

    return run


def _begin_shuffle(b: Builder, node: fx.Node, value: fx.Node, shuffle: Shuffle) -> Run:
    b.shuffles[node.name] = shuffle
    b.layouts[node.name] = shuffle.layout
    number, written = b.number(shuffle.layout.units), call(node, b)
    # A narrow value cannot be split: it keeps its old form until the matching reshape.
    return lambda frame: written(frame) if frame.kept.ids(number) is None else frame.values[value.name]


def _end_shuffle(b: Builder, node: fx.Node, value: fx.Node, shuffle: Shuffle) -> Run:
    """Channel shuffle: ids are permuted; the packed value is brought into the order of the new ids."""
    layout = shuffle.layout
    if not shuffle.transposed or b.shape(node) != shuffle.shape:
        b.refuse(node, layout, "splits its channels into blocks")
        return call(node, b)
    return _permuted(b, node, value, layout, shuffle.blocks)


def _permuted(b: Builder, node: fx.Node, value: fx.Node, layout: Layout, blocks: int) -> Run:
    order = np.arange(len(layout.units)).reshape(blocks, -1).T.reshape(-1)
    b.layouts[node.name] = Layout(layout.dim, layout.units[order])
    source, target = b.number(layout.units), b.number(layout.units[order])
    whole_order = torch.from_numpy(order)
    written = call(node, b)

    def run(frame: Frame) -> Any:
        ids_in, ids_out = frame.kept.ids(source), frame.kept.ids(target)
        if ids_in is None or ids_out is None:
            return written(frame)
        x: Tensor = frame.values[value.name]
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
    return _permuted(b, node, value, layout, blocks)


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
        return _turn_shuffle(b, node, value, [d for d, to in enumerate(order) if d != to])
    b.layouts[node.name] = Layout(order.index(layout.dim), layout.units)
    return call(node, b)


def _turn_shuffle(b: Builder, node: fx.Node, value: fx.Node, moved: list[int]) -> Run:
    shuffle = b.shuffles[value.name]
    dim = shuffle.layout.dim
    if shuffle.transposed or moved != [dim, dim + 1]:
        b.refuse(node, shuffle.layout, "permutes blocks of channels other than in a channel shuffle")
        return call(node, b)
    return _begin_shuffle(b, node, value, replace(shuffle, transposed=True))


def passing(b: Builder, node: fx.Node) -> Run:
    """contiguous, clone, to, ...: nothing moves."""
    value = tensors(b, node)[0]
    b.layouts[node.name] = b.layout(value)
    if value.name in b.shuffles:
        b.shuffles[node.name] = b.shuffles[value.name]
    return call(node, b)


def expand(b: Builder, node: fx.Node) -> Run:
    """Expand and expand_as: other dimensions may grow, channels stay as many as they are."""
    value, *rest = tensors(b, node)
    if rest:
        return elementwise(b, node)
    layout = b.layout(value)
    if layout is None:
        b.refuse_sizes(node, (node.args[1:], node.kwargs))
        return call(node, b)
    written: Any = node.args[1:] or tuple(node.kwargs.values())
    sizes = written[0] if isinstance(written[0], tuple | list) else written
    place = layout.dim + len(sizes) - len(b.shape(value))
    if len(sizes) != len(b.shape(node)) or b.shape(node)[place] != len(layout.units):
        b.refuse(node, layout, "spreads one channel over several")
        return call(node, b)
    b.refuse_sizes(node, [n for d, n in enumerate(sizes) if d != place])
    b.layouts[node.name] = Layout(place, layout.units)
    return lambda frame: frame.values[value.name].expand(
        [-1 if d == place else frame.fill(n) for d, n in enumerate(sizes)]
    )
