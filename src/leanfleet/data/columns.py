"""Which column of a table holds what, and its labels and writers as numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanfleet.data.dataset import DataSet, Split, split_80_20
from leanfleet.data.pixels import decode, stack
from leanfleet.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_NAMES = {
    "image": ("image", "img", "images"),
    "label": ("label", "labels", "fine_label", "character", "target", "y"),
    "writer": ("writer_id", "writer", "user_id", "user", "client_id"),
}


@dataclass(frozen=True)
class Columns:
    """The columns the user named; those left at None are found by feature type and conventional name."""

    image: str | None = None
    label: str | None = None
    writer: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows of one split, still encoded, and what to call them in an error (a file, or a set of the hub)."""

    rows: datasets.Dataset
    where: str


def from_tables(
    name: str, train: Table, test: Table | None, columns: Columns, first_classes: int | None = None
) -> DataSet:
    """Build a data set from tables whose rows hold encoded images.

    Without a test table the rows are divided 80 to 20 with a fixed seed, writer by writer where the writers are
    known (so that every writer has training data, as LEAF does for FEMNIST), else class by class.

    Args:
        name: What the set is called.
        train: The training rows.
        test: The test rows, if the set has any.
        columns: What the user knows better than our guess.
        first_classes: Keep only this many of the declared classes (for extracts that declare those of the whole).

    Raises:
        DataError: If a column is missing or cannot be used; it names the file.
    """
    tables = [train] if test is None else [train, test]
    names = [_columns(table, columns) for table in tables]
    labels, classes = _labels(tables, [chosen["label"] for chosen in names], first_classes)
    writers = _writers(tables, [chosen.get("writer") for chosen in names])
    splits = [
        Split(stack(_pictures(table, chosen["image"]), len(table.rows), table.where), label, writer)
        for table, chosen, label, writer in zip(tables, names, labels, writers, strict=True)
    ]
    if test is None:
        only = splits[0]
        splits = list(split_80_20(only, only.labels if only.writers is None else only.writers))
    return DataSet.of(name, splits[0], splits[1], classes)


def _columns(table: Table, wanted: Columns) -> dict[str, str]:
    """Return `{"image": ..., "label": ..., and "writer": ... where there is one}`."""
    import datasets

    features = table.rows.features
    kinds = {"image": datasets.Image, "label": datasets.ClassLabel}
    chosen = {}
    for role in ("image", "label", "writer"):
        named = getattr(wanted, role)
        if named is not None and named not in features:
            raise DataError(
                f"{table.where}: no column '{named}' for [data] {role}{did_you_mean(named, features)}"
            )
        typed = [column for column in features if role in kinds and isinstance(features[column], kinds[role])]
        found = named or _guess(_NAMES[role], list(features), typed)
        if found is not None:
            chosen[role] = found
        elif role != "writer":
            have = ", ".join(features)
            raise DataError(f"{table.where}: no {role} column among {have}; name it with [data] {role}")
    return chosen


def _guess(names: Sequence[str], columns: Collection[str], typed: Sequence[str]) -> str | None:
    """Return the first usual name with the right feature, else the first usual name, else the only right feature."""
    for pool in (typed, columns):
        for name in names:
            if name in pool:
                return name
    return typed[0] if len(typed) == 1 else None


def _pictures(table: Table, column: str) -> Iterator[Any]:
    """Yield the decoded image of every row."""
    import datasets
    import pyarrow as pa

    elsewhere = datasets.Image()
    likely: tuple[str, ...] | None = None
    rows = table.rows.select_columns([column])
    kind = rows.data.schema.field(column).type
    try:
        if pa.types.is_string(kind):  # would be taken for paths and addresses, to be opened one by one
            raise TypeError(kind)
        rows = rows.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{table.where}: column '{column}' holds {kind}, not encoded images; name another"
        ) from error
    # Cell by cell rather than decoded blocks, so that a damaged image is reported with its row.
    cells = (cell for block in rows.iter(batch_size=1000) for cell in block[column])
    for row, cell in enumerate(cells):
        if cell is None:
            raise DataError(f"{table.where}: row {row} has no image in column '{column}'")
        try:
            # Sets of the hub made of loose image files give a path instead of bytes.
            picture = (
                elsewhere.decode_example(cell) if cell["bytes"] is None else decode(cell["bytes"], likely)
            )
        except (ValueError, OSError, SyntaxError) as error:
            raise DataError(f"{table.where}: the image in row {row} cannot be decoded: {error}") from error
        likely = (picture.format,) if picture.format else None
        yield picture


def _labels(
    tables: Sequence[Table], names: Sequence[str], first_classes: int | None
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Return the labels of each table as class numbers, and the names of the classes."""
    import datasets

    declared = [table.rows.features[name] for table, name in zip(tables, names, strict=True)]
    values = [_values(table, name, "label") for table, name in zip(tables, names, strict=True)]
    if isinstance(declared[0], datasets.ClassLabel):
        if any(getattr(other, "names", None) != declared[0].names for other in declared[1:]):
            raise DataError(
                f"{tables[1].where}: its classes are not those of {tables[0].where}; use one numbering"
            )
        classes = tuple(declared[0].names[:first_classes])
    elif values[0].dtype.kind == "i":
        classes = _numbered(values, tables[0].where)
    else:
        values, unique = _codes(values)
        classes = tuple(map(str, unique))
    for table, value in zip(tables, values, strict=True):
        outside = np.flatnonzero((value < 0) | (value >= len(classes)))
        if len(outside):
            raise DataError(
                f"{table.where}: label {value[outside[0]]} in row {outside[0]} ({len(outside)} such rows) is outside "
                f"the range 0 to {len(classes) - 1} of the classes; drop or relabel those rows"
            )
    return [torch.from_numpy(value.astype(np.int64)) for value in values], classes


def _numbered(values: Sequence[np.ndarray[Any, Any]], where: str) -> tuple[str, ...]:
    """Return class names 0, 1, ... up to the highest label."""
    highest, rows = max(int(value.max(initial=0)) for value in values), sum(map(len, values))
    if highest >= max(rows, 2):
        raise DataError(
            f"{where}: label {highest} is outside the range of {rows} rows' classes; count labels from 0"
        )
    return tuple(map(str, range(highest + 1)))


def _writers(tables: Sequence[Table], names: Sequence[str | None]) -> list[Tensor | None]:
    """Return the writers of each table as numbers, counted over all tables together; None where one has none."""
    if any(name is None for name in names):
        return [None] * len(tables)
    values = [
        _values(table, name, "writer") for table, name in zip(tables, names, strict=True) if name is not None
    ]
    codes, _ = _codes(values)
    return [torch.from_numpy(code) for code in codes]


def _codes(values: Sequence[np.ndarray[Any, Any]]) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return each value's place among the sorted values of all arrays, and those values."""
    unique, codes = np.unique(np.concatenate(values), return_inverse=True)
    return np.split(codes.astype(np.int64), np.cumsum([len(value) for value in values])[:-1]), unique


def _values(table: Table, column: str, role: str) -> np.ndarray[Any, Any]:
    """Return a column of whole numbers as int64, or of words as str."""
    import pyarrow as pa

    cells: pa.ChunkedArray = table.rows.with_format("arrow").select_columns([column])[:][column]
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    if cells.null_count:
        raise DataError(
            f"{table.where}: {cells.null_count} rows have no {role} in column '{column}'; drop them"
        )
    if pa.types.is_integer(cells.type) or pa.types.is_boolean(cells.type):
        return np.asarray(cells.to_numpy()).astype(np.int64)
    if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
        return np.asarray(cells.to_pylist(), dtype=str)
    raise DataError(
        f"{table.where}: column '{column}' holds {cells.type}, which cannot be a {role}; name another one"
    )
