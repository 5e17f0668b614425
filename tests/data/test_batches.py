from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.data import Batches, Split, eval_batches
from leanfleet.data.dataset import channel_stats
from leanfleet.errors import DataError
from leanfleet.randomness import torch_generator

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)


def numbered(count: int, channels: int = 3, height: int = 9, width: int = 8) -> Split:
    """Noise; the label of an image is its row."""
    stream = torch.Generator().manual_seed(1)
    size = (count, height, width, channels)
    images = torch.randint(1, 256, size, generator=stream, dtype=torch.uint8).permute(0, 3, 1, 2)
    return Split(images, torch.arange(count))


def batches(split: Split, rows: torch.Tensor, **changes: Any) -> Batches:
    channels = split.images.shape[1]
    given: dict[str, Any] = {"batch_size": 32, "epochs": 1, "mean": MEAN[:channels], "std": STD[:channels]}
    return Batches(split, rows, **{**given, "generator": torch_generator(0), **changes})


def grey(x: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation."""
    mean, std = (torch.tensor(value)[: x.shape[1], None, None] for value in (MEAN, STD))
    return ((x * std + mean) * 255).round().to(torch.uint8)


@given(count=st.integers(0, 150), size=st.integers(1, 40), epochs=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_each_epoch_takes_every_row_once_in_batches_of_the_promised_sizes(
    count: int, size: int, epochs: int
) -> None:
    split = numbered(200)
    rows = torch.arange(200)[50 : 50 + count]
    device = batches(split, rows, batch_size=size, epochs=epochs)
    taken = [y.tolist() for _, y in device]
    assert len(taken) == len(device)
    assert sum(map(len, taken)) == device.samples == count * epochs
    an_epoch = len(device) // epochs
    for first in range(0, len(taken), max(an_epoch, 1)):
        one = taken[first : first + an_epoch]
        assert sorted(row for batch in one for row in batch) == rows.tolist()
        assert all(len(batch) == size for batch in one[:-1])
        assert len(one) == 1 or len(one[-1]) >= min(size, 8)
        assert len(one[-1]) < size + 8


@pytest.mark.parametrize(
    ("count", "sizes"), [(71, [32, 39]), (72, [32, 32, 8]), (64, [32, 32]), (33, [33]), (5, [5]), (0, [])]
)
def test_a_last_batch_under_eight_joins_the_one_before(count: int, sizes: list[int]) -> None:
    split = numbered(80)
    rows = torch.arange(count)
    assert [len(y) for _, y in batches(split, rows)] == sizes
    evaluated = eval_batches(split, batch_size=32, mean=MEAN, std=STD, seed=0, indices=rows)
    assert [len(y) for _, y in evaluated] == sizes


@given(
    channels=st.sampled_from([1, 3]),
    stored_as=st.sampled_from([torch.channels_last, torch.contiguous_format]),
)
@settings(deadline=None, max_examples=4)
def test_images_are_normalised_and_channels_last(channels: int, stored_as: torch.memory_format) -> None:
    split = numbered(40, channels)
    split = Split(split.images.contiguous(memory_format=stored_as), split.labels)
    mean, std = (torch.tensor(value)[:channels, None, None] for value in (MEAN, STD))
    for x, y in batches(split, torch.arange(40)):
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(x, (split.images[y] / 255 - mean) / std, atol=1e-5, rtol=0)


def test_a_set_normalised_by_its_own_statistics_has_mean_zero_and_deviation_one() -> None:
    split = numbered(64)
    mean, std = channel_stats(split.images)
    ((x, _),) = eval_batches(split, mean=mean, std=std, seed=0)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_the_generator_decides_the_order_and_every_epoch_has_its_own() -> None:
    split, rows = numbered(64), torch.arange(64)

    def order(seed: int) -> list[int]:
        stream = torch_generator(seed)
        return torch.cat([y for _, y in batches(split, rows, epochs=2, generator=stream)]).tolist()

    assert order(3) == order(3) != order(4)
    assert order(3)[:64] != order(3)[64:]


def test_crop_flip_shifts_by_up_to_four_pads_with_black_and_mirrors() -> None:
    split = numbered(400)
    padded = torch.nn.functional.pad(split.images, (4, 4, 4, 4))
    seen = set()
    for x, y in batches(split, torch.arange(400), augment="crop-flip"):
        for image, row in zip(grey(x), y.tolist(), strict=True):
            places = [
                (top, left, flipped)
                for top in range(9)
                for left in range(9)
                for flipped in (False, True)
                if torch.equal(
                    image.flip(2) if flipped else image, padded[row, :, top : top + 9, left : left + 8]
                )
            ]
            assert len(places) == 1
            seen.add(places[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_augmentation_is_drawn_for_each_sample_and_repeats_with_the_generator() -> None:
    split = Split(numbered(1).images.expand(40, -1, -1, -1), torch.zeros(40, dtype=torch.int64))
    (one, _), (other, _) = (
        next(iter(batches(split, torch.arange(40), augment="crop-flip", batch_size=40))) for _ in range(2)
    )
    assert torch.equal(one, other)
    assert len(one.flatten(1).unique(dim=0)) > 20


def test_batches_never_write_into_the_split() -> None:
    split = numbered(40)
    before = split.images.clone()
    for x, _ in batches(split, torch.arange(40), augment="crop-flip"):
        x.zero_()
    assert torch.equal(split.images, before)


def test_batches_go_to_the_device() -> None:
    split = numbered(4)
    ((x, y),) = batches(split, torch.arange(4), device="meta", augment="crop-flip")
    assert x.device.type == y.device.type == "meta"
    x, y = eval_batches(split, mean=MEAN, std=STD, seed=0, device="meta")[0]
    assert x.device.type == y.device.type == "meta"


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'crop-flip'"):
        batches(numbered(2), torch.arange(2), augment="crop_flip")


@given(count=st.integers(1, 120), workers=st.integers(1, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_workers_together_see_the_batches_of_one(count: int, workers: int, seed: int) -> None:
    split = numbered(120)
    rows = torch.arange(120)[:count]

    def evaluation() -> Any:
        return eval_batches(split, batch_size=16, mean=MEAN, std=STD, seed=seed, indices=rows)

    whole = list(evaluation())
    assert sorted(torch.cat([y for _, y in whole]).tolist()) == rows.tolist()
    for worker in range(workers):
        mine = evaluation()[worker::workers]
        assert len(mine) == len(whole[worker::workers])
        assert mine.samples == sum(len(y) for _, y in whole[worker::workers])
        for (x, y), (x_whole, y_whole) in zip(mine, whole[worker::workers], strict=True):
            assert torch.equal(x, x_whole)
            assert torch.equal(y, y_whole)


def test_evaluation_is_shuffled_by_its_seed_alone() -> None:
    one, other = (
        eval_batches(numbered(200), mean=MEAN, std=STD, seed=seed)[0][1].tolist() for seed in (0, 1)
    )
    assert sorted(one) == sorted(other) == list(range(200))
    assert one != other != list(range(200))
    assert one == eval_batches(numbered(200), mean=MEAN, std=STD, seed=0)[-1][1].tolist()
