from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from leanfleet.data import KNOWN, DataSet, find, load
from leanfleet.data.sources import _load
from leanfleet.errors import DataError


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder from outside, nor the hub, nor what another test has loaded."""

    def no_network(name: str) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand more")

    monkeypatch.delenv("LEANFLEET_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", no_network)
    _load.cache_clear()


def write(path: Path, count: int = 10, **columns: Any) -> Path:
    """Write a Parquet file whose row i shows a picture of grey level i and has label i % 2."""
    pictures = []
    for row in range(count):
        buffer = io.BytesIO()
        Image.new("L", (3, 2), row).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    columns = {"image": pictures, "label": [row % 2 for row in range(count)], **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(
        pa.table({name: column for name, column in columns.items() if column is not None}), path
    )
    return path


class Pictures(torch.utils.data.Dataset[Any]):
    def __init__(self, items: list[Any], classes: list[str] | None = None) -> None:
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]


def test_digits_are_the_1797_of_scikit_learn_divided_class_by_class() -> None:
    data = load("digits")
    assert (data.name, data.shape, data.classes) == ("digits", (1, 8, 8), tuple("0123456789"))
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert int(data.train.images.max()) == 255
    per_class = torch.bincount(data.train.labels) + torch.bincount(data.test.labels)
    assert per_class.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (torch.bincount(data.test.labels) - per_class / 5).abs().max() < 1
    # sixteenths of white: 255 * mean / 16 up to the rounding of grey levels
    assert data.mean[0] == pytest.approx(0.30526, abs=1e-3)


def test_the_same_source_is_loaded_once() -> None:
    assert load("digits") is load("digits")


def test_the_argument_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, count in (("argument", 10), ("environment", 6)):
        for half in ("train", "test"):
            write(tmp_path / place / "fashion_mnist" / f"{half}.parquet", count)
    monkeypatch.setenv("LEANFLEET_DATA", str(tmp_path / "environment"))
    assert len(load("fashion_mnist").train) == 6
    assert len(load("fashion_mnist", folder=tmp_path / "argument").train) == 10
    assert find("fashion_mnist") == tmp_path / "environment" / "fashion_mnist"
    assert find("fashion_mnist", tmp_path / "argument") == tmp_path / "argument" / "fashion_mnist"
    assert find("cifar10") is None


def test_a_parquet_file_is_divided_80_to_20_always_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.parquet", 20)
    data = load(str(path))
    assert (data.name, len(data.train), len(data.test)) == ("mine", 16, 4)
    _load.cache_clear()
    assert torch.equal(load(str(path)).test.images, data.test.images)


def test_a_folder_may_have_both_splits_or_only_train(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "train.parquet", 10)
    assert len(load(str(tmp_path / "mine")).test) == 2
    write(tmp_path / "mine" / "test.parquet", 7)
    _load.cache_clear()
    assert len(load(str(tmp_path / "mine")).test) == 7
    assert load("mine", folder=tmp_path).name == "mine"


def test_a_known_set_without_its_test_split_is_refused_unless_it_never_had_one(tmp_path: Path) -> None:
    for name in ("cifar10", "femnist"):
        write(tmp_path / name / "train.parquet", 10)
    with pytest.raises(DataError, match=r"cifar10: holds train\.parquet but no test\.parquet"):
        load("cifar10", folder=tmp_path)
    assert len(load("femnist", folder=tmp_path).test) == 2


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.parquet", other=["b", "a"] * 5)
    assert load(str(path), label="other").classes == ("a", "b")


def test_nothing_is_left_on_disk(tmp_path: Path) -> None:
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = sorted(cache.rglob("*"))
    load(str(write(tmp_path / "mine.parquet")))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.parquet"]
    assert sorted(cache.rglob("*")) == before


def test_a_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [Image.fromarray(np.full((2, 3), row, np.uint8)) for row in range(10)]
    rows = datasets.Dataset.from_dict(
        {"image": pictures, "character": [0, 1] * 5, "writer_id": ["a"] * 5 + ["b"] * 5},
        datasets.Features(
            image=datasets.Image(),
            character=datasets.ClassLabel(names=["0", "1"]),
            writer_id=datasets.Value("string"),
        ),
    )
    asked = []

    def hub(name: str) -> datasets.DatasetDict:
        asked.append(name)
        return datasets.DatasetDict(train=rows)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    data = load("femnist")
    assert (asked, data.name, data.shape) == (["flwrlabs/femnist"], "femnist", (1, 2, 3))
    assert data.test.writers is not None
    assert data.test.writers.tolist() == [0, 1]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows, validation=rows)
    )
    assert len(load("hf:someone/else").test) == 10
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(all=rows))
    with pytest.raises(DataError, match="hf:some/one: has no train split, only all"):
        load("hf:some/one")


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("place", [None, "empty"])
def test_a_set_that_is_nowhere_says_to_set_the_folder(name: str, place: str | None, tmp_path: Path) -> None:
    hint = rf"set LEANFLEET_DATA or \[data\] folder to the folder that holds {name}/train.parquet"
    with pytest.raises(DataError, match=hint) as error:
        load(name, folder=None if place is None else tmp_path)
    assert str(error.value).startswith(f"{name}: {'no folder is set' if place is None else 'there is no'}")
    assert "\n" not in str(error.value)


def test_a_set_of_the_hub_that_cannot_be_reached() -> None:
    with pytest.raises(
        DataError,
        match=r"the hub does not give hf:a/b \(ConnectionError: Couldn't reach 'a/b' on the Hub\); check",
    ):
        load("hf:a/b")


def test_an_unknown_source_gets_a_hint() -> None:
    with pytest.raises(DataError, match="cifar_10: no such data set, file or folder; did you mean 'cifar10'"):
        load("cifar_10")


def test_text_is_refused() -> None:
    with pytest.raises(DataError, match="it is text and has no images"):
        load("shakespeare")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'leanfleet\[data\]'"):
        load("digits")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet").read_bytes()
    half = tmp_path / "half.parquet"
    rotten = tmp_path / "rotten.parquet"
    half.write_bytes(whole[: len(whole) // 2])
    rotten.write_bytes(whole[:4] + bytes(len(whole) - 400) + whole[-396:])
    text = tmp_path / "text.csv"
    text.write_text("image,label\n")
    for path in (half, rotten, text):
        with pytest.raises(DataError, match=path.name) as error:
            load(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"holds no train\.parquet"):
        load(str(tmp_path))


def test_a_broken_description_of_the_columns_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    for description in (b"{", b'{"info": {"features": {"image": {"_type": "Hologram"}}}}'):
        table = pa.table({"image": [b""], "label": [0]}).replace_schema_metadata(
            {b"huggingface": description}
        )
        pa.parquet.write_table(table, path)
        with pytest.raises(DataError, match=r"mine\.parquet: its description of the columns is damaged"):
            load(str(path))


def test_files_without_labels_or_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.parquet: no label column among image"):
        load(str(write(tmp_path / "a.parquet", label=None)))
    with pytest.raises(DataError, match=r"b.parquet: no image column among label"):
        load(str(write(tmp_path / "b.parquet", image=None)))


def test_a_torch_data_set() -> None:
    items = [(torch.full((3, 4, 5), row / 255), row % 2) for row in range(20)]
    data = load(Pictures(items, classes=["cat", "dog"]))
    assert (data.name, data.shape, data.classes) == ("Pictures", (3, 4, 5), ("cat", "dog"))
    assert (len(data.train), len(data.test)) == (16, 4)
    assert torch.equal(data.train.labels, data.train.images[:, 0, 0, 0].long() % 2)


def test_a_pair_of_torch_data_sets() -> None:
    train = Pictures([(Image.new("RGB", (5, 4)), 0), (Image.new("RGB", (5, 4)), torch.tensor(2))])
    test = Pictures([(torch.zeros(3, 4, 5, dtype=torch.uint8), 1)])
    data = load((train, test))
    assert (len(data.train), len(data.test), data.classes) == (2, 1, ("0", "1", "2"))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(torch.zeros(2, 2), 0), torch.zeros(3)], "Pictures, train: item 1 is not"),
        ([(torch.zeros(2, 2), "cat")], "Pictures, train: item 0 is not"),
        ([(torch.zeros(2, 2), 0), (torch.zeros(3, 2), 0)], "Pictures, train: the image in row 1 is 3x2"),
        ([], "Pictures, train: there are no rows"),
    ],
)
def test_a_torch_data_set_that_cannot_be_used(items: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(Pictures(items))


def test_torch_data_that_are_not_map_style_are_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    for source in (Stream(), (Pictures([]), Pictures([]), Pictures([]))):
        with pytest.raises(DataError, match="map-style"):
            load(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "column_means", "sizes", "shape"),
    [
        ("cifar10", (125.307 / 255, 122.950 / 255, 113.865 / 255), (50_000, 10_000), (3, 32, 32)),
        ("fashion_mnist", (0.28604,), (60_000, 10_000), (1, 28, 28)),
        ("mnist_writers", (0.13066,), (60_000, 10_000), (1, 28, 28)),
    ],
)
def test_real_sets_have_the_published_channel_means(
    name: str,
    column_means: tuple[float, ...],
    sizes: tuple[int, int],
    shape: tuple[int, int, int],
    real_set: Callable[[str], DataSet],
) -> None:
    data = real_set(name)
    assert (len(data.train), len(data.test)) == sizes
    assert (data.shape, len(data.classes)) == (shape, 10)
    assert data.mean == pytest.approx(column_means, abs=6e-6)
    if name == "mnist_writers":
        assert data.train.writers is not None
        assert len(data.train.writers.unique()) == 539


def test_the_first_ten_classes_of_cifar100(real_set: Callable[[str], DataSet]) -> None:
    data = real_set("cifar100_first10")
    assert len(data.classes) == 10
    assert data.classes[::9] == ("apple", "bottle")
    assert torch.bincount(data.test.labels).tolist() == [100] * 10
