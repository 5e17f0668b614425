"""Parameters to small dense leaves and back (packed leaf parameters, our decision).

Kept ids are unique and gathered outside autograd, so that no full-size gradient ever exists and what was
dropped changes by exactly zero, whatever momentum and weight decay do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanfleet.subnet.kept import Kept
from leanfleet.subnet.trace import Cut


def gather(tensor: Tensor, cut: Cut | None, kept: Kept) -> Tensor:
    """Return the kept part of a parameter; the tensor itself where nothing of it is dropped."""
    if cut is None or kept.full:
        return tensor
    if cut.blocks > 1:
        rows, columns = _diagonal(tensor.shape, cut, kept, tensor.device)
        return tensor[rows[:, None], columns]
    for dim, layout in enumerate(cut.dims):
        ids = None if layout is None else kept.ids(layout, tensor.device)
        if ids is not None:
            tensor = tensor.index_select(dim, ids)
    return tensor


def scatter_(tensor: Tensor, leaf: Tensor, cut: Cut | None, kept: Kept) -> None:
    """Write the kept part of a parameter back in place."""
    if leaf.data_ptr() == tensor.data_ptr() and leaf.shape == tensor.shape:
        return
    if cut is None or kept.full:
        tensor.copy_(leaf)
        return
    if cut.blocks > 1:
        rows, columns = _diagonal(tensor.shape, cut, kept, tensor.device)
        tensor[rows[:, None], columns] = leaf
        return
    ids = [None if layout is None else kept.ids(layout, tensor.device) for layout in cut.dims]
    cut_dims = [(dim, i) for dim, i in enumerate(ids) if i is not None]
    if not cut_dims:
        tensor.copy_(leaf)
    elif len(cut_dims) == 1:
        tensor.index_copy_(*cut_dims[0], leaf)
    else:
        (first, outer), (second, inner) = cut_dims
        rows = tensor.index_select(first, outer)
        tensor.index_copy_(first, outer, rows.index_copy_(second, inner, leaf))


def positions(cut: Cut | None, kept: Kept, shape: torch.Size) -> tuple[Tensor | None, ...]:
    """Return where the kept part of a parameter lies, as `averaging.HolderSum.add` takes it."""
    if cut is None or kept.full:
        return ()
    if cut.blocks > 1:
        rows, columns = _diagonal(shape, cut, kept)
        return rows[:, None], columns
    return tuple(None if layout is None else kept.ids(layout) for layout in cut.dims)


def _diagonal(
    shape: torch.Size, cut: Cut, kept: Kept, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the kept rows [r] and, for each, its kept columns [r, c] in a block-diagonal (grouped) weight."""
    sizes = shape[0], shape[1] * cut.blocks
    found = []
    for layout, size in zip(cut.dims, sizes, strict=True):
        ids = None if layout is None else kept.ids(layout, device)
        found.append(torch.arange(size, device=device) if ids is None else ids)
    rows, columns = found
    by_block = columns.view(cut.blocks, -1) % shape[1]
    return rows, by_block.repeat_interleave(len(rows) // cut.blocks, dim=0)
