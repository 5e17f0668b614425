from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.data import Split, Stream

PIXELS = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 8, 8).contiguous()
SPLIT = Split(PIXELS, torch.arange(40) % 7)


def stream(count: int = 10, batch_size: int = 4, client: int = 0, augment: str = "none") -> Stream:
    # Mean 0 and deviation 1/255 leave pixels as they are: each image shows its own number.
    indices = torch.arange(40)[-count:]
    return Stream(
        SPLIT, indices, batch_size=batch_size, mean=(0.0,), std=(1 / 255,), stream=(0, client), augment=augment  # type: ignore[arg-type]
    )  # fmt: skip


def rows(s: Stream, number: int) -> list[int]:
    x, y = s.batch(number)
    found = x[:, 0, 0, 0].round().long()
    assert torch.equal(y, found % 7)
    assert x.shape == (s.batch_size, 1, 8, 8)
    return found.tolist()


@given(st.integers(1, 13), st.integers(1, 30))
@settings(max_examples=40)
def test_every_epoch_holds_every_sample_once_whatever_the_batch(count: int, batch_size: int) -> None:
    s = stream(count, batch_size)
    laid = [row for number in range(-(-3 * count // batch_size)) for row in rows(s, number)]
    for epoch in range(3):
        assert sorted(laid[epoch * count : (epoch + 1) * count]) == list(range(40 - count, 40))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 9))
@settings(max_examples=30)
def test_a_batch_depends_on_its_number_alone(numbers: list[int], batch_size: int) -> None:
    one = stream(5, batch_size)
    assert [rows(one, n) for n in numbers] == [rows(stream(5, batch_size), n) for n in numbers]


def test_epochs_and_clients_are_shuffled_each_in_its_own_way() -> None:
    s = stream(40, 40)
    orders = [tuple(rows(s, 0)), tuple(rows(s, 1)), tuple(rows(stream(40, 40, client=1), 0))]
    assert len(set(orders)) == 3
    assert rows(s, 0) == list(orders[0])


@pytest.mark.parametrize("number", [0, 7])
def test_augmentation_is_of_the_batch_too(number: int) -> None:
    s = stream(augment="crop-flip")
    x, y = s.batch(number)
    again, labels = stream(augment="crop-flip").batch(number)
    plain, _ = stream().batch(number)
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert not torch.equal(x, plain)


def test_batches_are_in_the_layout_that_convolutions_like() -> None:
    split = Split(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.arange(9))
    s = Stream(split, torch.arange(9), batch_size=4, mean=(0.5,) * 3, std=(0.25,) * 3, stream=(0,))
    x, _ = s.batch(0)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert float(x.max()) == -2.0


def test_few_orders_are_kept() -> None:
    s = stream(3, 2)
    for number in range(60):
        s.batch(number)
    assert len(s._orders) <= 2
