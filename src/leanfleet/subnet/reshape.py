"""What a reshape does to the channel dimension, read off the shapes before and after it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reshaped:
    """Where the channels went.

    Attributes:
        dim: The output's channel dimension.
        repeat: Positions a channel now takes (a flatten of C x H x W gives H * W).
        split: Channels were split into `split` blocks along dimensions `dim` and `dim + 1` (first half of a
            channel shuffle); 1 otherwise.
    """

    dim: int
    repeat: int = 1
    split: int = 1


def follow(before: tuple[int, ...], after: tuple[int, ...], dim: int) -> Reshaped | None:
    """Follow dimension `dim` through a reshape; None where it is mixed with what comes before it.

    Both shapes are cut into the finest stretches of equal product; the stretch that holds `dim` decides. A
    single channel is not followed: it is never dropped, and its dimension may vanish.
    """
    i = j = 0
    while i < len(before):
        first_i, first_j = i, j
        left, right = before[i], after[j] if j < len(after) else 1
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        if first_i <= dim < i:
            return _read(before[first_i:i], after[first_j:j], dim - first_i, first_j)
    return None


def _read(before: tuple[int, ...], after: tuple[int, ...], dim: int, start: int) -> Reshaped | None:
    if before[dim] == 1 or any(size != 1 for size in before[:dim]):
        return None
    real = [k for k, size in enumerate(after) if size != 1] or [0]
    if len(real) == 1:
        trailing = 1
        for size in before[dim + 1 :]:
            trailing *= size
        return Reshaped(start + real[0], repeat=trailing)
    if len(real) == 2 and real[1] == real[0] + 1 and all(size == 1 for size in before[dim + 1 :]):
        return Reshaped(start + real[0], split=after[real[0]])
    return None
