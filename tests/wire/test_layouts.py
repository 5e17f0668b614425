from __future__ import annotations

import pytest
import torch

from leanfleet.errors import WireError
from leanfleet.wire import Payload, layout_bytes, pack, sparse, whole

ELEMENTS = 163_840  # activations of 32 samples at mu 0.2


def activations(nonzeros: int) -> Payload:
    values = torch.zeros(ELEMENTS)
    order = torch.randperm(ELEMENTS, generator=torch.Generator().manual_seed(1))
    values[order[:nonzeros]] = 1.5
    return sparse(values.reshape(32, 20, 16, 16))


def test_bytes_of_sparse_activations() -> None:
    """AdaSplit's example: 81 % non-zeros."""
    payload = activations(132_710)
    assert layout_bytes(payload) == {"holes": 655_360, "bitmap": 551_320, "positions": 829_438}
    header_bytes = 1 + 1 + 1 + 3  # tensors, format, layout, count
    assert len(pack({"activations": payload})) == header_bytes + 551_320


@pytest.mark.parametrize(
    ("nonzeros", "shorter", "longer"),
    [
        (ELEMENTS * 31 // 32 + 1, "holes", "bitmap"),
        (ELEMENTS * 31 // 32 - 1, "bitmap", "holes"),
        (ELEMENTS // 18 + 4, "bitmap", "positions"),
        (ELEMENTS // 18 - 4, "positions", "bitmap"),
    ],
)
def test_where_layouts_cross(nonzeros: int, shorter: str, longer: str) -> None:
    sizes = layout_bytes(activations(nonzeros))
    assert sizes[shorter] < sizes[longer]


def test_gaps_are_shortest_where_few_are_sent() -> None:
    sizes = layout_bytes(activations(1638))
    assert min(sizes, key=sizes.__getitem__) == "gaps"


def test_holes_need_values_that_are_not_zero() -> None:
    shape, positions = (4,), torch.arange(4)
    full = Payload(shape, torch.float32, positions, torch.ones(4))
    explicit = Payload(shape, torch.float32, positions, torch.tensor([1.0, 0, 1, 1]))
    assert set(layout_bytes(full)) == {"holes", "bitmap", "positions"}
    assert set(layout_bytes(explicit)) == {"bitmap", "positions"}
    assert layout_bytes(whole(torch.zeros(4))) == {"all": 16}


@pytest.mark.parametrize("positions", [[1, 0], [1, 1], [-1, 2], [2, 4]])
def test_positions_that_are_none_are_refused_by_the_sender(positions: list[int]) -> None:
    payload = Payload((4,), torch.float32, torch.tensor(positions), torch.ones(2))
    with pytest.raises(WireError, match="tensors 'v' to 'v': positions are not ascending and below 4"):
        pack({"v": payload})
