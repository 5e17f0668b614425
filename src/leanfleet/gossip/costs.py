"""Bytes as Sparse-Push's author counts them, and what final rounds cost (Aketi et al. 2021; author code)."""

from __future__ import annotations

from collections.abc import Iterable

from leanfleet.wire import kept_count


def authors_bytes(sizes: Iterable[int], density: float) -> int:
    """Return the bytes of one message in the author's way of counting, with which published ratios are made.

    Dense: 4 (d + 1), a float for every parameter and the weight. Sparse: 6 K + 3, though layers of more than 65,536
    elements need more than the two bytes of a position. What is really sent is what the ledger counts.

    Args:
        sizes: Elements of every tensor.
        density: Share of them that is sent; 1 is dense.
    """
    counts = [kept_count(density, size) for size in sizes]
    return 4 * (sum(counts) + 1) if density == 1 else 6 * sum(counts) + 3


def total_ratio(sparse_ratio: float, final_rounds: int, steps: int) -> float:
    """Return by how much less is sent in a whole run than without compression: 1 / (1/r + R/T).

    Args:
        sparse_ratio: r, of a dense message to a sparse one.
        final_rounds: R, which are dense.
        steps: T, training iterations with an exchange.
    """
    return 1 / (1 / sparse_ratio + final_rounds / steps)
