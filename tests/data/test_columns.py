from __future__ import annotations

import io
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leanfleet.data import DataSet
from leanfleet.data.columns import Columns, Table, from_tables
from leanfleet.errors import DataError


def png(value: int, width: int = 3) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("L", (width, 2), value).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(where: str = "file", features: dict[str, Any] | None = None, **columns: list[Any]) -> Table:
    """A table whose row i shows a picture of grey level i, unless told otherwise."""
    count = len(next(iter(columns.values())))
    columns = {"image": [png(row) for row in range(count)], **columns}
    kinds = {"image": datasets.Image(), **(features or {})}
    rows = datasets.Dataset(pa.table(columns))
    for name, kind in kinds.items():
        rows = rows.cast_column(name, kind) if name in columns and kind is not None else rows
    return Table(rows, where)


def loaded(
    train: Table, test: Table | None = None, first_classes: int | None = None, **columns: str
) -> DataSet:
    return from_tables("x", train, test or train, Columns(**columns), first_classes)


def names(*labels: str) -> dict[str, Any]:
    return {"label": datasets.ClassLabel(names=list(labels))}


@given(st.lists(st.text("abcxyz", min_size=1, max_size=3), min_size=1, max_size=20), st.data())
@settings(deadline=None, max_examples=20)
def test_words_become_sorted_classes_of_both_splits(words: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(words)))
    train, test = words[:cut], words[cut:] or words[:1]
    got = loaded(table(label=train), table(label=test))
    assert list(got.classes) == sorted({*train, *test})
    assert [got.classes[label] for label in got.train.labels] == train
    assert [got.classes[label] for label in got.test.labels] == test


@given(st.lists(st.sampled_from(["w9", "w1", "w5"]), min_size=2, max_size=12))
@settings(deadline=None, max_examples=10)
def test_writers_are_numbered_alike_in_both_splits(writers: list[str]) -> None:
    count = len(writers)
    got = loaded(
        table(label=[0] * count, writer_id=writers), table(label=[0] * count, writer_id=writers[::-1])
    )
    assert got.train.writers is not None
    assert got.test.writers is not None
    assert got.train.writers.tolist() == [sorted(set(writers)).index(writer) for writer in writers]
    assert torch.equal(got.train.writers, got.test.writers.flip(0))


def test_rows_keep_picture_and_label_together() -> None:
    got = loaded(table(label=[2, 0, 1]))
    assert got.train.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert got.train.labels.tolist() == [2, 0, 1]
    assert got.classes == ("0", "1", "2")
    assert got.train.writers is None


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1, 0, 1], pa.int8()),
        pa.array([1, 0, 1], pa.uint64()),
        pa.array([True, False, True]),
        pa.array(["b", "a", "b"], pa.large_string()),
        pa.array(["b", "a", "b"]).dictionary_encode(),
    ],
)
def test_labels_of_many_types(labels: pa.Array) -> None:
    assert loaded(table(label=labels)).train.labels.tolist() == [1, 0, 1]


def test_declared_classes_are_kept_even_if_unseen_and_cut_where_told() -> None:
    both = table(label=[0, 1], features=names("a", "b", "c", "d"))
    assert loaded(both).classes == ("a", "b", "c", "d")
    assert loaded(both, first_classes=2).classes == ("a", "b")


def test_the_usual_columns_are_found_by_feature_and_name() -> None:
    odd = Table(
        table(label=[0, 1], features=names("a", "b")).rows.rename_columns(
            {"image": "photo", "label": "kind"}
        ),
        "",
    )
    assert loaded(odd).classes == ("a", "b")
    fine = table(coarse_label=[0, 0], fine_label=[1, 0], features={"coarse_label": names("c")["label"]})
    assert loaded(fine).train.labels.tolist() == [1, 0]
    shadowed = table(label=[0, 0], character=[1, 0], features={"character": names("a", "b")["label"]})
    assert loaded(shadowed).train.labels.tolist() == [1, 0]
    plain = table(img=[png(7), png(9)], target=[0, 1], features={"image": None})
    assert loaded(plain, image="img").train.images[:, 0, 0, 0].tolist() == [7, 9]
    assert loaded(Table(plain.rows.remove_columns("image"), "")).train.images[:, 0, 0, 0].tolist() == [7, 9]


def test_bytes_without_any_feature_description_are_images() -> None:
    raw = table(image=[png(5)["bytes"], png(6)["bytes"]], label=[0, 1], features={"image": None})
    assert loaded(raw).train.images[:, 0, 0, 0].tolist() == [5, 6]


def test_named_columns_win() -> None:
    got = loaded(table(label=[0, 1], other=[1, 0], who=[5, 4], writer_id=[1, 1]), label="other", writer="who")
    assert got.train.labels.tolist() == [1, 0]
    assert got.train.writers is not None
    assert got.train.writers.tolist() == [1, 0]


def test_without_a_test_table_every_writer_is_divided_80_to_20() -> None:
    got = from_tables("x", table(label=[0] * 40, writer_id=["a", "b"] * 20), None, Columns())
    assert got.train.writers is not None
    assert np.bincount(got.train.writers).tolist() == [16, 16]
    shown = torch.cat([got.train.images, got.test.images])[:, 0, 0, 0]
    assert sorted(shown.tolist()) == list(range(40))


def test_without_writers_every_class_is_divided_80_to_20() -> None:
    got = from_tables("x", table(label=[0, 1, 2, 3] * 10), None, Columns())
    assert np.bincount(got.train.labels).tolist() == [8] * 4


def damaged(row: int) -> list[Any]:
    images = [png(0), png(1), png(2)]
    images[row] = {"bytes": images[row]["bytes"][:20], "path": None}
    return images


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (table("here", text=["a"], features={"image": None}, image=["b"]), "no label column among .*text"),
        (
            Table(table("here", label=[0]).rows.remove_columns("image"), "here"),
            r"no image column among label; .*\[data\]",
        ),
        (
            table("here", label=[0], features={"image": None}, image=[3]),
            "column 'image' holds int64, not encoded images",
        ),
        (
            table("here", label=[0], features={"image": None}, image=["/etc/hostname"]),
            "column 'image' holds string, not encoded images",
        ),
        (
            table("here", label=[0, 1], image=[png(0), png(0, width=4)]),
            "the image in row 1 is 2x4 .* row 0 2x3",
        ),
        (table("here", label=[0, 1], image=[png(0), None]), "row 1 has no image"),
        (table("here", label=[0, 1, 1], image=damaged(1)), "the image in row 1 cannot be decoded"),
        (table("here", label=[0.5, 1.5]), "column 'label' holds double, which cannot be a label"),
        (table("here", label=[0, None]), "1 rows have no label"),
        (table("here", label=[0, -1]), r"label -1 in row 1 \(1 such rows\) is outside the range 0 to 0"),
        (table("here", label=[0, 1000]), "label 1000 is outside the range"),
        (table("here", label=[0, 1], writer_id=["a", None]), "1 rows have no writer"),
        (table("here", label=pa.array([], pa.int64()), image=pa.array([], pa.binary())), "there are no rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(bad: Table, message: str) -> None:
    with pytest.raises(DataError, match=f"here: {message}") as error:
        loaded(bad)
    assert "\n" not in str(error.value)


def test_labels_beyond_the_declared_classes_are_refused() -> None:
    declared = datasets.DatasetInfo(features=datasets.Features(image=datasets.Image(), **names("a", "b")))
    rows = datasets.Dataset(table(label=[0, 5, 1, 9]).rows.data.table, info=declared)
    with pytest.raises(
        DataError, match=r"here: label 5 in row 1 \(2 such rows\) is outside the range 0 to 1"
    ):
        loaded(Table(rows, "here"))


def test_a_column_that_is_not_there_gets_a_hint() -> None:
    with pytest.raises(DataError, match=r"no column 'lable' for \[data\] label; did you mean 'label'"):
        loaded(table(label=[0]), label="lable")


def test_splits_with_different_class_lists_are_refused() -> None:
    one, other = (table(order, label=[0, 1], features=names(*order)) for order in ("ab", "ba"))
    with pytest.raises(DataError, match="ba: its classes are not those of ab"):
        loaded(one, other)
