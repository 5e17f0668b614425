from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing as torch_processes

from leanfleet.data import DataSet, Split
from leanfleet.data.dataset import channel_stats, split_80_20
from leanfleet.errors import DataError


def a_split(count: int = 20, channels: int = 3, classes: int = 4, writers: int | None = None) -> Split:
    stream = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, 6, 5), generator=stream, dtype=torch.uint8)
    who = None if writers is None else torch.arange(count) % writers
    return Split(images, torch.arange(count) % classes, who)


def child(data: DataSet, answers: Any) -> None:
    data.train.images[0, 0, 0, 0] = 77
    assert data.validation is not None
    answers.put([data.train.images.is_shared(), data.validation.images.is_shared()])


@given(st.integers(1, 40), st.sampled_from([1, 3]), st.booleans())
@settings(deadline=None, max_examples=20)
def test_channel_stats_equal_those_of_a_float_copy(count: int, channels: int, channels_last: bool) -> None:
    images = a_split(count, channels).images
    images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    mean, std = channel_stats(images)
    floats = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), floats.mean((0, 2, 3)), atol=1e-6, rtol=0)
    expected = floats.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected, atol=1e-6, rtol=0)


def test_a_constant_channel_has_deviation_one_so_that_nothing_is_divided_by_zero() -> None:
    assert channel_stats(torch.full((3, 1, 4, 4), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


@given(st.lists(st.integers(0, 5), min_size=5, max_size=200))
@settings(deadline=None, max_examples=50)
def test_the_80_20_split_covers_every_row_once_and_every_group_evenly(groups: list[int]) -> None:
    count = len(groups)
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    every = Split(images, torch.arange(count), torch.tensor(groups))
    train, test = split_80_20(every, torch.tensor(groups))
    assert sorted(train.labels.tolist() + test.labels.tolist()) == list(range(count))
    assert len(test) == count // 5
    assert test.writers is not None
    for group in set(groups):
        assert abs(int((test.writers == group).sum()) - groups.count(group) / 5) < 1


def test_the_80_20_split_is_always_the_same_one() -> None:
    one, other = (split_80_20(a_split(50), a_split(50).labels)[1].images for _ in range(2))
    assert torch.equal(one, other)


def test_select_keeps_rows_together() -> None:
    split = a_split(20, writers=3)
    rows = torch.tensor([4, 17, 0])
    part = split.select(rows)
    assert torch.equal(part.images, split.images[rows])
    assert torch.equal(part.labels, split.labels[rows])
    assert part.writers is not None
    assert torch.equal(part.writers, rows % 3)


def test_shape_is_that_of_one_image() -> None:
    assert DataSet.of("x", a_split(), a_split(5), tuple("abcd")).shape == (3, 6, 5)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), r"images must be uint8"),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\[N, C, H, W\]"),
        (
            torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int64),
            r"labels must be int64 \[3\]",
        ),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3), r"labels must be int64"),
    ],
)
def test_a_split_of_wrong_tensors_is_refused(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Split(images, labels)


def test_a_set_whose_halves_do_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="test labels run from 0 to 3, outside the range 0 to 1"):
        DataSet.of("x", a_split(classes=2), a_split(), ("a", "b"))
    with pytest.raises(DataError, match="3x6x5 but 1x6x5 in the test split"):
        DataSet.of("x", a_split(), a_split(channels=1), tuple("abcd"))
    with pytest.raises(DataError, match="the test split is empty"):
        DataSet.of("x", a_split(), a_split(0), tuple("abcd"))


def test_a_validation_split_is_checked_like_the_others() -> None:
    with pytest.raises(DataError, match="validation labels run from 0 to 3, outside the range 0 to 1"):
        DataSet.of("x", a_split(classes=2), a_split(classes=2), ("a", "b"), validation=a_split())
    with pytest.raises(DataError, match="3x6x5 but 1x6x5 in the validation split"):
        DataSet.of("x", a_split(), a_split(), tuple("abcd"), validation=a_split(channels=1))
    with pytest.raises(DataError, match="the validation split is empty"):
        DataSet.of("x", a_split(), a_split(), tuple("abcd"), validation=a_split(0))


def test_a_writer_is_normalised_by_its_own_statistics_where_there_are_such() -> None:
    own = (((0.1,) * 3, (0.2,) * 3), ((0.3,) * 3, (0.4,) * 3))
    plain = DataSet.of("x", a_split(writers=2), a_split(), tuple("abcd"))
    data = DataSet.of("x", a_split(writers=2), a_split(5, writers=2), tuple("abcd"), writer_stats=own)
    assert plain.stats() == plain.stats(1) == data.stats() == channel_stats(data.train.images)
    assert [data.stats(0), data.stats(1)] == list(own)
    for writer in (-1, 2):
        with pytest.raises(DataError, match=f"x: no statistics of writer {writer}; its writers are 0 to 1"):
            data.stats(writer)


def test_statistics_must_cover_every_writer() -> None:
    own = (((0.1,) * 3, (0.2,) * 3),)
    for other in (a_split(writers=2), a_split()):
        with pytest.raises(DataError, match="x: the test split has writers without statistics"):
            DataSet.of("x", a_split(writers=1), other, tuple("abcd"), writer_stats=own)


def test_a_spawned_process_sees_the_same_memory() -> None:
    data = DataSet.of(
        "x", a_split(writers=2), a_split(), tuple("abcd"), validation=a_split(5)
    ).share_memory_()
    spawn = torch_processes.get_context("spawn")
    answers = spawn.SimpleQueue()
    worker = spawn.Process(target=child, args=(data, answers))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert answers.get() == [True, True]
    assert int(data.train.images[0, 0, 0, 0]) == 77
    assert not multiprocessing.active_children()
