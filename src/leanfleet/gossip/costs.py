"""Bytes as Sparse-Push's author counts them (Aketi et al. 2021; author code)."""

from __future__ import annotations

from collections.abc import Iterable

from leanfleet.wire import kept_count


def sent_values(sizes: Iterable[int], density: float) -> int:
    """Return how many values of tensors of these sizes a message holds: of each the share, and at least one."""
    return sum(kept_count(density, size) for size in sizes)


def authors_bytes(sizes: Iterable[int], density: float) -> int:
    """Return the bytes of one message in the author's way of counting, with which published ratios are made.

    Dense: 4 (d + 1), a float for every parameter and the weight. Sparse: 6 K + 3, though layers of more than 65,536
    elements need more than the two bytes of a position. What is really sent is what the ledger counts.

    Args:
        sizes: Elements of every tensor.
        density: Share of them that is sent; 1 is dense.
    """
    values = sent_values(sizes, density)
    return 4 * (values + 1) if density == 1 else 6 * values + 3
