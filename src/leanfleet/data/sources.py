"""Where data come from: scikit-learn's digits, Parquet files, the hub, a PyTorch data set, or a mix of sets."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.data

from leanfleet.data.columns import Columns, Table, from_tables
from leanfleet.data.dataset import DataSet, Split, split_80_20
from leanfleet.data.mixed import MIXED
from leanfleet.data.pixels import stack
from leanfleet.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets

TorchData = torch.utils.data.Dataset[Any]


@dataclass(frozen=True)
class Known:
    """A data set known by name.

    Attributes:
        hub: Its name on the Hugging Face hub, or None where only a folder has it.
        first_classes: How many of the declared classes it really has, where that is fewer.
        has_test: Whether it comes with a test split; its folder must then hold one, so that nobody compares a
            published number with our own split by mistake.
    """

    hub: str | None = None
    first_classes: int | None = None
    has_test: bool = True


KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "cifar10": Known("uoft-cs/cifar10"),
        "cifar100": Known("uoft-cs/cifar100"),
        "cifar100_first10": Known(first_classes=10),
        "mnist_writers": Known(),
        "fashion_mnist": Known("zalando-datasets/fashion_mnist"),
        "emnist_letters_a_to_j": Known(),
        "femnist": Known("flwrlabs/femnist", has_test=False),
    }
)


def load(
    source: str | TorchData | tuple[TorchData, TorchData],
    *,
    folder: str | Path | None = None,
    image: str | None = None,
    label: str | None = None,
    writer: str | None = None,
    seed: int = 0,
) -> DataSet:
    """Load a data set into memory.

    String sources are loaded once a process: the same call gives the same object, so a changed file is not noticed.
    Of the generated ones only the last is kept.
    Where a source has no test split (`digits`, FEMNIST on the hub, a single Parquet file), 80 % train and 20 % test
    are drawn with a fixed seed, writer by writer where writers are known, else class by class.

    Args:
        source: One of
            `digits` (scikit-learn's 1,797 digits, 1x8x8; no network, no file);
            `mixed-noniid` or `mixed-cifar` (AdaSplit's data, generated from sets in the folder; the writers are the
            clients; see `leanfleet.data.mixed`);
            a name in `KNOWN`, found as `<folder>/<name>/{train,test}.parquet`, else on the hub;
            `hf:owner/name`, a set of the hub;
            a path to a Parquet file, or to a folder with `train.parquet` and perhaps `test.parquet`;
            a `torch.utils.data.Dataset` of (image, label), or a pair (train, test) of them, where an image is a PIL
            image or a tensor uint8 or float in [0, 1], `[C, H, W]` or `[H, W]`. It is read once, so its random
            transforms are frozen; class names are its attribute `classes`, if it has one.
        folder: Where named sets lie; wins over the environment variable `LEANFLEET_DATA`.
        image: Column of the images, if not found by itself.
        label: Column of the labels, if not found by itself. Words become classes in alphabetical order.
        writer: Column of the writers, if not found by itself.
        seed: Decides what a generated source (`mixed-...`) is like; the others do not depend on it.

    Raises:
        DataError: If there is no such set, or it cannot be read; one line that names the file and says what to do.
    """
    if not isinstance(source, str):
        return _from_torch(source)
    try:
        if source in MIXED:
            return _generated(source, _folder(folder), seed)
        return _load(source, _folder(folder), Columns(image, label, writer))
    except ModuleNotFoundError as error:
        raise DataError(f"{source}: needs the package {error.name}; pip install 'leanfleet[data]'") from error


def find(name: str, folder: str | Path | None = None) -> Path | None:
    """Return the folder of a named set in `folder` or else in `LEANFLEET_DATA`, or None if it is not there."""
    where = _folder(folder)
    return None if where is None else _found(where / name)


def _folder(folder: str | Path | None) -> Path | None:
    where = folder or os.environ.get("LEANFLEET_DATA")
    return Path(where).expanduser().absolute() if where else None


def _found(path: Path) -> Path | None:
    return path if (path / "train.parquet").is_file() else None


# One: a study over seeds would otherwise keep several sets of hundreds of megabytes.
@lru_cache(maxsize=1)
def _generated(source: str, folder: Path | None, seed: int) -> DataSet:
    return MIXED[source](folder, _in_folder, seed)


@lru_cache(maxsize=4)
def _load(source: str, folder: Path | None, columns: Columns) -> DataSet:
    if source == "digits":
        return _digits()
    if source == "shakespeare":
        raise DataError(
            "shakespeare: it is text and has no images; leanfleet trains on images, choose another source"
        )
    if source.startswith("python:"):
        raise DataError(
            f"{source}: these data were given in Python, and no file names them; give them again there, as data=..."
        )
    if source.startswith("hf:"):
        hub = source.removeprefix("hf:")
        return _from_hub(_fetch(hub, "", "check the name and the network"), hub, source, columns, None)
    here = None if folder is None else _found(folder / source)
    if source in KNOWN:
        return _known_on_hub(source, folder, columns) if here is None else _known_in(here, source, columns)
    path = here or Path(source).expanduser()
    if not path.exists():
        hint = did_you_mean(source, ["digits", *MIXED, *KNOWN])
        raise DataError(
            f"{source}: no such data set, file or folder{hint}; sets of the hub are written hf:owner/name"
        )
    return _from_files(path, path.stem if path.is_file() else path.name, columns, None)


def _digits() -> DataSet:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8)
    every = Split((images * (255 / 16)).round().to(torch.uint8), torch.from_numpy(labels).long())
    train, test = split_80_20(every, every.labels)
    return DataSet.of("digits", train, test, tuple("0123456789"))


def _from_files(path: Path, name: str, columns: Columns, first_classes: int | None) -> DataSet:
    """Load a Parquet file, or a folder with `train.parquet` and perhaps `test.parquet`."""
    if path.is_file():
        return from_tables(name, _read(path), None, columns, first_classes)
    train, test = path / "train.parquet", path / "test.parquet"
    if not train.is_file():
        raise DataError(
            f"{path}: holds no train.parquet; give a Parquet file, or a folder with train.parquet in it"
        )
    return from_tables(name, _read(train), _read(test) if test.exists() else None, columns, first_classes)


def _read(path: Path) -> Table:
    """Read a Parquet file into memory."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    # Not `load_dataset("parquet", ...)`: it would leave a second copy of the file in its cache on disk, and save no
    # time (decoding is most of it).
    try:
        return Table(datasets.Dataset(pa.parquet.read_table(path)), str(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file, or a damaged one ({_line(error)}); fetch it again"
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # what a broken feature description leads to
        raise DataError(f"{path}: its description of the columns is damaged ({_line(error)})") from error


def _in_folder(path: Path) -> DataSet:
    """Load the set in a folder, by its name's rules if it is a known one."""
    return (
        _known_in(path, path.name, Columns())
        if path.name in KNOWN
        else _from_files(path, path.name, Columns(), None)
    )


def _known_in(folder: Path, name: str, columns: Columns) -> DataSet:
    known = KNOWN[name]
    if known.has_test and not (folder / "test.parquet").exists():
        raise DataError(f"{folder}: holds train.parquet but no test.parquet; {name} has one, fetch it too")
    return _from_files(folder, name, columns, known.first_classes)


def _known_on_hub(name: str, folder: Path | None, columns: Columns) -> DataSet:
    missing = "no folder is set" if folder is None else f"there is no {folder / name / 'train.parquet'}"
    advice = f"set LEANFLEET_DATA or [data] folder to the folder that holds {name}/train.parquet"
    known = KNOWN[name]
    if known.hub is None:
        raise DataError(f"{name}: {missing}, and the hub has no such set; {advice}")
    splits = _fetch(known.hub, f"{name}: {missing}, and ", advice)
    return _from_hub(splits, known.hub, name, columns, known.first_classes)


def _fetch(hub: str, before: str, advice: str) -> datasets.DatasetDict:
    """Return all splits of a set of the hub."""
    import datasets

    log = logging.getLogger("huggingface_hub")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # without a network it warns of each of its retries; one line is enough
        # It may take long, and longer where there is no network.
        print(f"asking the hub for hf:{hub}", file=sys.stderr, flush=True)
        return datasets.load_dataset(hub)
    except (
        Exception
    ) as error:  # no network, no such set, no rights: its libraries share no base class for these
        reason = f"{type(error).__name__}: {_line(error)}"
        raise DataError(f"{before}the hub does not give hf:{hub} ({reason}); {advice}") from error
    finally:
        log.setLevel(level)


def _from_hub(
    splits: datasets.DatasetDict, hub: str, name: str, columns: Columns, first_classes: int | None
) -> DataSet:
    if "train" not in splits:
        have = ", ".join(splits)
        raise DataError(f"hf:{hub}: has no train split, only {have}; save one as Parquet and give its path")
    tables = {half: Table(rows, f"hf:{hub} ({half})") for half, rows in splits.items()}
    return from_tables(
        name, tables["train"], tables.get("test", tables.get("validation")), columns, first_classes
    )


def _from_torch(source: TorchData | tuple[TorchData, TorchData]) -> DataSet:
    parts = source if isinstance(source, tuple) else (source,)
    name = type(parts[0]).__name__
    if len(parts) > 2 or not all(hasattr(part, "__len__") and hasattr(part, "__getitem__") for part in parts):
        raise DataError(
            f"{name}: give a map-style torch.utils.data.Dataset with a length, or a pair (train, test)"
        )
    splits = [_items(part, f"{name}, {half}") for part, half in zip(parts, ("train", "test"), strict=False)]
    highest = max(int(split.labels.max()) for split in splits)
    named = getattr(parts[0], "classes", None)
    classes = tuple(map(str, range(highest + 1) if named is None else named))
    train, test = splits if len(splits) == 2 else split_80_20(splits[0], splits[0].labels)
    return DataSet.of(name, train, test, classes)


def _items(data: Any, where: str) -> Split:
    """Read every (image, label) of a PyTorch data set once."""
    labels: list[int] = []

    def pictures() -> Any:
        # By index: a data set without __iter__ need not raise IndexError at its end.
        for row in range(len(data)):
            try:
                picture, label = data[row]
                labels.append(int(label))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{where}: item {row} is not (image, label) with a whole number as label"
                ) from error
            yield picture

    return Split(stack(pictures(), len(data), where), torch.tensor(labels, dtype=torch.int64))


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
