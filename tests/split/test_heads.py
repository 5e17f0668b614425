from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import NetworkError
from leanfleet.split.heads import EMBEDDING, head_macs, local_head

LENET = {
    (20, 16, 16): (663_552, 10_944),
    (50, 8, 8): (417_792, 14_784),
    (800,): (221_184, 221_504),
    (500,): (144_384, 144_704),
}


@pytest.mark.parametrize("outputs", [EMBEDDING, 10])
@pytest.mark.parametrize("shape", [*LENET, (1,), (3, 7), (2, 3, 4, 5), (6, 1, 1)])
def test_gives_so_many_numbers_at_the_counted_cost(shape: tuple[int, ...], outputs: int) -> None:
    head = local_head(shape, outputs)
    with FlopCounterMode(display=False) as flops:
        out = head(torch.randn(3, *shape))
    assert out.shape == (3, outputs)
    assert flops.get_total_flops() == 2 * 3 * head_macs(shape, outputs)


def test_an_embedding_has_64_numbers() -> None:
    assert local_head((5,))(torch.randn(3, 5)).shape == (3, 64)


@pytest.mark.parametrize("shape", LENET)
def test_table_of_lenet(shape: tuple[int, ...]) -> None:
    macs, count = LENET[shape]
    assert head_macs(shape) == macs
    assert sum(p.numel() for p in local_head(shape).parameters()) == count


def test_places_do_not_matter_but_for_their_largest_value() -> None:
    x = torch.randn(2, 5, 4, 4)
    moved = x.flatten(2)[:, :, torch.randperm(16)].reshape(x.shape)
    head = local_head((5, 4, 4))
    torch.testing.assert_close(head(moved), head(x))


def test_is_not_normalised() -> None:
    head = local_head((9,))
    norms = head(100 * torch.randn(4, 9)).norm(dim=1)
    assert norms.std() > 0.1


@pytest.mark.parametrize("shape", [(), (2, 2, 2, 2, 2)])
def test_other_activations_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NetworkError, match=r"no head for an activation of shape \("):
        local_head(shape)
