from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leanfleet.data import DataSet, Split, load, partition
from leanfleet.data.dataset import channel_stats
from leanfleet.data.mixed import MIXED, mixed_cifar, mixed_noniid
from leanfleet.errors import DataError

AT_HAND = ["cifar100_first10", "cifar10", "fashion_mnist", "mnist_writers", "emnist_letters_a_to_j"]
COLOURED = ("cifar100", "cifar100_first10", "cifar10")
CIFAR = ((125.3 / 255, 123 / 255, 113.9 / 255), (63 / 255, 62.1 / 255, 66.7 / 255))


def a_set(name: str, classes: int = 10, side: int | None = None, each: int = 20) -> DataSet:
    """Noise, no two images alike: as many of each class, three quarters of them in the train split."""
    side = side or (32 if name in COLOURED else 28)
    stream = torch.Generator().manual_seed(len(name))
    count = classes * each
    size = (count, side, side, 3 if name in COLOURED else 1)
    images = torch.randint(0, 256, size, generator=stream, dtype=torch.uint8).permute(0, 3, 1, 2)
    every = Split(images, torch.arange(count) % classes, torch.arange(count))
    rows = torch.arange(count).split(count * 3 // 4)
    return DataSet.of(name, every.select(rows[0]), every.select(rows[1]), tuple(map(str, range(classes))))


SETS = {name: a_set(name) for name in (*AT_HAND, "cifar100", "mnist", "notmnist")}


def read(path: Path) -> DataSet:
    return SETS[path.name]


def folder_of(where: Path, names: Sequence[str]) -> Path:
    """A folder where these sets seem to lie."""
    for name in names:
        (where / name).mkdir(parents=True, exist_ok=True)
        (where / name / "train.parquet").touch()
    return where


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("sets"), AT_HAND)


def splits(data: DataSet) -> list[Split]:
    return [split for split in (data.train, data.test, data.validation) if split is not None]


def sizes(split: Split) -> list[int]:
    assert split.writers is not None
    return torch.bincount(split.writers).tolist()


def pictures(split: Split, border: int = 0) -> list[bytes]:
    images = split.images[:, :, border : 32 - border, border : 32 - border]
    return [image.numpy().tobytes() for image in images]


def label_by_picture(source: DataSet) -> dict[bytes, int]:
    """The label of each image of a set, as three channels."""
    found = {}
    for half in (source.train, source.test):
        spread = Split(half.images.expand(-1, 3, -1, -1), half.labels)
        found.update(zip(pictures(spread), spread.labels.tolist(), strict=True))
    return found


def client(split: Split, number: int) -> Split:
    assert split.writers is not None
    return split.select(torch.nonzero(split.writers == number).flatten())


@given(seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=10)
def test_noniid_clients_hold_five_classes_of_their_set_70_20_10_each_image_once(
    seed: int, folder: Path
) -> None:
    data = mixed_noniid(folder, read, seed)
    assert data.shape == (3, 32, 32)
    assert [sizes(split) for split in splits(data)] == [[70] * 5, [20] * 5, [10] * 5]
    for number, name in enumerate(AT_HAND):
        border = 0 if name in COLOURED else 2
        known = label_by_picture(SETS[name])
        held = [client(split, number) for split in splits(data)]
        seen = [picture for split in held for picture in pictures(split, border)]
        labels = torch.cat([split.labels for split in held]).tolist()
        assert len(set(seen)) == len(seen) == 100
        # Five classes of the set, each with one label and all its 20 images.
        renamed = {(known[picture], label) for picture, label in zip(seen, labels, strict=True)}
        assert sorted(label for _, label in renamed) == list(range(5))
        assert len({old for old, _ in renamed}) == 5
        assert np.bincount(labels).tolist() == [20] * 5


def test_noniid_small_images_are_centred_on_black(folder: Path) -> None:
    images = client(mixed_noniid(folder, read, 0).test, 3).images
    border = images.clone()
    border[:, :, 2:30, 2:30] = 0
    assert not border.any()
    assert images[:, :, 2:30, 2:30].any()
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


@given(seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=10)
def test_cifar_clients_hold_two_whole_classes_90_10_each_image_once(seed: int, folder: Path) -> None:
    data = mixed_cifar(folder, read, seed)
    assert data.validation is None
    assert [sizes(split) for split in splits(data)] == [[36] * 5, [4] * 5]
    known = label_by_picture(SETS["cifar10"])
    seen = {}
    for split in splits(data):
        seen.update(zip(pictures(split), split.labels.tolist(), strict=True))
    assert seen == known
    classes = [
        {label for split in splits(data) for label in client(split, number).labels.tolist()}
        for number in range(5)
    ]
    assert [len(pair) for pair in classes] == [2] * 5
    assert set.union(*classes) == set(range(10))


@pytest.mark.parametrize("name", sorted(MIXED))
def test_the_seed_alone_decides(name: str, folder: Path) -> None:
    one, again, other = (MIXED[name](folder, read, seed) for seed in (3, 3, 4))
    for split, same in zip(splits(one), splits(again), strict=True):
        assert torch.equal(split.images, same.images)
        assert torch.equal(split.labels, same.labels)
    assert not torch.equal(one.train.images, other.train.images)
    assert [sizes(split) for split in splits(one)] == [sizes(split) for split in splits(other)]


@pytest.mark.parametrize("name", sorted(MIXED))
def test_images_lie_channels_last_in_every_split(name: str, folder: Path) -> None:
    for split in splits(MIXED[name](folder, read, 0)):
        assert split.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", sorted(MIXED))
def test_the_writer_partition_gives_each_client_its_own_in_every_split(name: str, folder: Path) -> None:
    data = MIXED[name](folder, read, 0)
    for split in splits(data):
        assert split.writers is not None
        parts = partition("writer", split, None, seed=9)
        assert [split.writers[rows].unique().tolist() for rows in parts] == [[0], [1], [2], [3], [4]]


def test_each_client_has_the_published_normalisation_and_a_stand_in_its_own(folder: Path) -> None:
    data = mixed_noniid(folder, read, 0)
    assert data.stats(0) == data.stats(1) == CIFAR
    assert data.stats(2) == ((0.2190,) * 3, (0.3318,) * 3)
    assert data.stats(3) == ((0.1,) * 3, (0.2752,) * 3)
    assert data.stats(4) == channel_stats(client(data.train, 4).images)
    assert data.stats() == (data.mean, data.std) == channel_stats(data.train.images)
    pair = mixed_cifar(folder, read, 0)
    assert pair.stats(2) == pair.stats()


def test_the_note_names_sets_and_stand_ins(folder: Path) -> None:
    assert mixed_noniid(folder, read, 0).note == (
        "clients 0 to 4 hold cifar100_first10 (its first ten classes stand in for CIFAR-100), cifar10, "
        "fashion_mnist, mnist_writers, emnist_letters_a_to_j (EMNIST letters A to J stand in for notMNIST, "
        "normalised by their own statistics)"
    )
    data = mixed_cifar(folder, read, 0)
    held = [" and ".join(map(str, part)) for part in _pairs(data)]
    for pair in held:
        assert pair in data.note or " and ".join(reversed(pair.split(" and "))) in data.note


def _pairs(data: DataSet) -> list[list[int]]:
    return [client(data.train, number).labels.unique().tolist() for number in range(5)]


def test_the_sets_themselves_are_taken_before_their_stand_ins(tmp_path: Path) -> None:
    data = mixed_noniid(folder_of(tmp_path, [*AT_HAND, "cifar100", "mnist", "notmnist"]), read, 0)
    assert data.note == "clients 0 to 4 hold cifar100, cifar10, fashion_mnist, mnist, notmnist"
    assert data.stats(4) == ((0.4254,) * 3, (0.4501,) * 3)


def test_all_missing_sets_are_named_in_one_line(tmp_path: Path) -> None:
    somewhere = folder_of(tmp_path, ["cifar10", "mnist_writers"])
    with pytest.raises(DataError) as error:
        mixed_noniid(somewhere, read, 0)
    assert str(error.value) == (
        f"mixed-noniid: not all of its sets are in {somewhere}; set LEANFLEET_DATA or [data] folder to the folder "
        "that holds, each with train.parquet and test.parquet, cifar100 or cifar100_first10, fashion_mnist, "
        "notmnist or emnist_letters_a_to_j"
    )


def test_without_a_folder_it_says_to_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEANFLEET_DATA", raising=False)
    with pytest.raises(DataError, match=r"^mixed-cifar: no folder is set; set LEANFLEET_DATA or .* cifar10$"):
        load("mixed-cifar")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (
            a_set("cifar10", classes=4),
            "cifar10: has images of 4 classes; mixed-noniid takes 5 of each set",
        ),
        (a_set("cifar10", side=40), "cifar10: images of 40x40 do not fit into 32x32; shrink them"),
    ],
)
def test_a_set_that_does_not_fit_is_named(odd: DataSet, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        mixed_noniid(folder, lambda path: odd if path.name == "cifar10" else read(path), 0)


def write_cifar(where: Path) -> None:
    """CIFAR-10 in small: the pixel in row y and column x of an image of class c is (y, x, 10 c + its number)."""
    y, x = np.mgrid[:32, :32]
    for half, each in (("train", 8), ("test", 2)):
        cells = []
        for number in range(10 * each):
            level = np.full((32, 32), 10 * (number % 10) + number // 10)
            buffer = io.BytesIO()
            Image.fromarray(np.stack([y, x, level], axis=2).astype(np.uint8)).save(buffer, "PNG")
            cells.append(buffer.getvalue())
        where.joinpath("cifar10").mkdir(exist_ok=True)
        table = pa.table({"img": cells, "label": [number % 10 for number in range(10 * each)]})
        pa.parquet.write_table(table, where / "cifar10" / f"{half}.parquet")


def test_pixels_of_files_keep_their_places(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    data = load("mixed-cifar", folder=tmp_path, seed=5)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    for split in splits(data):
        red, green, blue = split.images.unbind(1)
        assert (red == y).all()
        assert (green == x).all()
        assert (blue // 10 == split.labels[:, None, None]).all()


def test_a_seed_is_loaded_once(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    one = load("mixed-cifar", folder=tmp_path, seed=1)
    assert load("mixed-cifar", folder=tmp_path, seed=1) is one
    assert not torch.equal(load("mixed-cifar", folder=tmp_path).train.images, one.train.images)


def test_a_known_set_without_its_test_split_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "cifar10" / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"holds train\.parquet but no test\.parquet"):
        load("mixed-cifar", folder=tmp_path, seed=2)


def test_a_misspelt_source_gets_a_hint() -> None:
    with pytest.raises(DataError, match="did you mean 'mixed-noniid'"):
        load("mixed-nonid")


def test_real_noniid_has_the_sizes_of_the_paper_and_unscrambled_pixels(
    real: Path, real_set: Callable[[str], DataSet]
) -> None:
    for name in AT_HAND:
        real_set(name)
    data = mixed_noniid(real, lambda path: real_set(path.name), 0)
    train, test, validation = (sizes(split) for split in splits(data))
    assert [train[number] for number in (0, 1, 2, 4)] == [2_100, 21_000, 24_500, 13_300]
    assert [test[number] for number in (0, 1, 2, 4)] == [600, 6_000, 7_000, 3_800]
    assert [validation[number] for number in (0, 1, 2, 4)] == [300, 3_000, 3_500, 1_900]
    # MNIST's classes differ in size; five of ten have 34,000 to 36,000 images.
    assert train[3] == pytest.approx(24_500, rel=0.03)
    for number, name in enumerate(AT_HAND):
        ours, source = client(data.test, number), real_set(name)
        border = 0 if name in COLOURED else 2
        sums = [half.images.sum((1, 2, 3)) for half in (source.train, source.test)]
        for image in ours.images[:10, : source.shape[0], border : 32 - border, border : 32 - border]:
            near = [
                half.images[total == image.sum()]
                for half, total in zip((source.train, source.test), sums, strict=True)
            ]
            assert (torch.cat(near) == image).flatten(1).all(1).any()
        # The published constants are about those of the images as they lie here.
        mean, std = channel_stats(client(data.validation, number).images)  # type: ignore[arg-type]
        assert data.stats(number)[0] == pytest.approx(mean, abs=0.05)
        assert data.stats(number)[1] == pytest.approx(std, abs=0.05)


def test_real_cifar_has_the_sizes_of_the_paper(real: Path, real_set: Callable[[str], DataSet]) -> None:
    real_set("cifar10")
    data = mixed_cifar(real, lambda path: real_set(path.name), 0)
    assert [sizes(split) for split in splits(data)] == [[10_800] * 5, [1_200] * 5]
    assert data.mean == pytest.approx(CIFAR[0], abs=1e-3)
    assert data.std == pytest.approx(CIFAR[1], abs=1e-3)
    assert all(len(pair) == 2 for pair in _pairs(data))
