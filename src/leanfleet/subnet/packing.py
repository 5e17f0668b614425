"""Parameters to small dense leaves and back (packed leaf parameters, our decision).

Kept ids are unique and gathered outside autograd, so that no full-size gradient ever exists and what was
dropped changes by exactly zero, whatever momentum and weight decay do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanfleet.subnet.builder import Cut
from leanfleet.subnet.kept import Kept


def gather(tensor: Tensor, cut: Cut | None, kept: Kept) -> Tensor:
    """Return the kept part of a parameter; the tensor itself where nothing of it is dropped."""
    ids = _ids(cut, kept, tensor.device)
    if cut is not None and cut.blocks > 1 and ids:
        rows, columns = _diagonal(tensor.shape, cut.blocks, ids, tensor.device)
        return tensor[rows[:, None], columns]
    for dim, picks in ids.items():
        tensor = tensor.index_select(dim, picks)
    return tensor


def scatter_(tensor: Tensor, leaf: Tensor, cut: Cut | None, kept: Kept) -> None:
    """Write the kept part of a parameter back in place."""
    if leaf.data_ptr() == tensor.data_ptr() and leaf.shape == tensor.shape:
        return
    ids = _ids(cut, kept, tensor.device)
    if cut is not None and cut.blocks > 1 and ids:
        rows, columns = _diagonal(tensor.shape, cut.blocks, ids, tensor.device)
        tensor[rows[:, None], columns] = leaf
    elif not ids:
        tensor.copy_(leaf)
    elif len(ids) == 1:
        ((dim, picks),) = ids.items()
        tensor.index_copy_(dim, picks, leaf)
    else:
        (first, outer), (second, inner) = ids.items()
        rows = tensor.index_select(first, outer)
        tensor.index_copy_(first, outer, rows.index_copy_(second, inner, leaf))


def positions(cut: Cut | None, kept: Kept, shape: torch.Size) -> tuple[Tensor | None, ...]:
    """Return where the kept part of a parameter lies, as `averaging.HolderSum.add` takes it."""
    ids = _ids(cut, kept)
    if cut is not None and cut.blocks > 1 and ids:
        rows, columns = _diagonal(shape, cut.blocks, ids)
        return rows[:, None], columns
    return tuple(ids.get(dim) for dim in range(max(ids, default=-1) + 1))


def _ids(cut: Cut | None, kept: Kept, device: torch.device | str = "cpu") -> dict[int, Tensor]:
    """Return the kept ids of every dimension that is not kept whole."""
    if cut is None or kept.full:
        return {}
    found = {d: kept.ids(layout, device) for d, layout in enumerate(cut.dims) if layout is not None}
    return {dim: ids for dim, ids in found.items() if ids is not None}


def _diagonal(
    shape: torch.Size, blocks: int, ids: dict[int, Tensor], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the kept rows [r] and, for each, its kept columns [r, c] in a block-diagonal (grouped) weight."""
    sizes = shape[0], shape[1] * blocks
    rows, columns = (ids.get(d, torch.arange(size, device=device)) for d, size in enumerate(sizes))
    by_block = columns.view(blocks, -1) % shape[1]
    return rows, by_block.repeat_interleave(len(rows) // blocks, dim=0)
