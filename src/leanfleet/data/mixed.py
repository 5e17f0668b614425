"""Mixed-NonIID and Mixed-CIFAR: the data of AdaSplit's experiments, generated from labelled image sets.

The writers of both are the clients, so the partition `writer` gives every client its own data. Sizes, classes and
normalisation follow the code of the authors of Chopra et al. 2021; two of its habits do not: it reshaped images to
channels first without moving the axes, which scrambled their pixels, and it augmented some test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from leanfleet.data.dataset import DataSet, Split, Stats, channel_stats
from leanfleet.errors import DataError
from leanfleet.randomness import torch_generator

Read = Callable[[Path], DataSet]
"""Reads the set that lies in a folder."""

_SIDE = 32
_CLASSES = 5  # a client of Mixed-NonIID has


@dataclass(frozen=True)
class _Source:
    """A set that a client may be made from: its folder, its normalisation (None: measured), what to say of it."""

    name: str
    stats: Stats | None
    remark: str = ""


def _grey(mean: float, std: float) -> Stats:
    return (mean,) * 3, (std,) * 3


_CIFAR: Stats = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
_MNIST = _grey(0.1, 0.2752)
# A line a client; the first set that is at hand is taken.
_NONIID = (
    (
        _Source("cifar100", _CIFAR),
        _Source("cifar100_first10", _CIFAR, "its first ten classes stand in for CIFAR-100"),
    ),
    (_Source("cifar10", _CIFAR),),
    (_Source("fashion_mnist", _grey(0.2190, 0.3318)),),
    (_Source("mnist", _MNIST), _Source("mnist_writers", _MNIST)),
    (
        _Source("notmnist", _grey(0.4254, 0.4501)),
        # notMNIST's constants say nothing about other letters, which have black grounds.
        _Source(
            "emnist_letters_a_to_j",
            None,
            "EMNIST letters A to J stand in for notMNIST, normalised by their own statistics",
        ),
    ),
)


def mixed_noniid(folder: Path | None, read: Read, seed: int) -> DataSet:
    """Return Mixed-NonIID: five clients with five classes of a data set each (Chopra et al. 2021).

    Clients 0 to 4 are made from CIFAR-100, CIFAR-10, Fashion-MNIST, MNIST and notMNIST. Of each, train and test
    images are pooled and shuffled, five classes are drawn and become labels 0 to 4 in the order drawn, and 70 % of
    their images are for training, 20 % for tests and 10 % for validation (the authors left those unused). All images
    are 3x32x32: smaller ones are centred on black, grey ones copied to three channels. `writer_stats` holds the
    authors' normalisation of each set; a stand-in is normalised by the client's own training images (our decision).
    The `note` names the sets that were taken.

    Args:
        folder: Where the sets lie.
        read: Reads one of them.
        seed: Decides classes and shuffles, for each client on its own.

    Raises:
        DataError: If a set is missing (all that are missing are named), has fewer than five classes, or has images
            larger than 32x32.
    """
    sources = _choose("mixed-noniid", folder, _NONIID)
    clients = [
        _client(read(path), client, torch_generator(seed, "mixed-noniid", client))
        for client, path in enumerate(sources)
    ]
    train, test, validation = (_join(parts) for parts in zip(*clients, strict=True))
    assert train.writers is not None
    stats = tuple(
        channel_stats(train.images[train.writers == client]) if source.stats is None else source.stats
        for client, source in enumerate(sources.values())
    )
    names = [
        f"{source.name} ({source.remark})" if source.remark else source.name for source in sources.values()
    ]
    return DataSet.of(
        "mixed-noniid",
        train,
        test,
        tuple(map(str, range(_CLASSES))),
        validation=validation,
        writer_stats=stats,
        note=f"clients 0 to {len(names) - 1} hold {', '.join(names)}",
    )


def mixed_cifar(folder: Path | None, read: Read, seed: int) -> DataSet:
    """Return Mixed-CIFAR: five clients with two classes of CIFAR-10 each (Chopra et al. 2021).

    The 60,000 images of train and test are pooled, the classes are shuffled and dealt in pairs, and of a client's
    12,000 images 10,800 are for training and 1,200 for tests. Labels stay 0 to 9. The protocol has no validation
    split, and it gets none here, so that the sizes are the authors' (our decision). One normalisation serves all
    clients. The `note` names the classes of each client.

    Args:
        folder: Where CIFAR-10 lies.
        read: Reads it.
        seed: Decides pairs and shuffle.

    Raises:
        DataError: If CIFAR-10 is missing.
    """
    (path,) = _choose("mixed-cifar", folder, ((_Source("cifar10", None),),))
    data = read(path)
    pool, classes = _pool(data), data.classes
    del data  # the pool is a copy of it
    stream = torch_generator(seed, "mixed-cifar")
    pairs = torch.split(torch.randperm(len(classes), generator=stream), 2)
    client_of = torch.cat(pairs).argsort() // 2
    pool = Split(pool.images, pool.labels, client_of[pool.labels])
    order = torch.randperm(len(pool), generator=stream)
    owner = client_of[pool.labels[order]]
    halves = zip(*(_cut(order[owner == client], 9) for client in range(len(pairs))), strict=True)
    train, test = (pool.select(torch.cat(rows)) for rows in halves)
    names = [" and ".join(classes[label] for label in pair.tolist()) for pair in pairs]
    note = f"clients 0 to {len(names) - 1} hold {', '.join(names)}"
    return DataSet.of("mixed-cifar", train, test, classes, note=note)


MIXED: Mapping[str, Callable[[Path | None, Read, int], DataSet]] = MappingProxyType(
    {"mixed-noniid": mixed_noniid, "mixed-cifar": mixed_cifar}
)
"""The generated sources by name: each takes the folder of the sets, what reads one, and the seed."""


def _choose(name: str, folder: Path | None, clients: Sequence[Sequence[_Source]]) -> dict[Path, _Source]:
    """Return the first set at hand of each client, by its folder."""
    found, missing = {}, []
    for sources in clients:
        here = [
            source
            for source in sources
            if folder is not None and (folder / source.name / "train.parquet").is_file()
        ]
        if folder is not None and here:
            found[folder / here[0].name] = here[0]
        else:
            missing.append(" or ".join(source.name for source in sources))
    if missing:
        place = "no folder is set" if folder is None else f"not all of its sets are in {folder}"
        raise DataError(
            f"{name}: {place}; set LEANFLEET_DATA or [data] folder to the folder that holds, each with train.parquet "
            f"and test.parquet, {', '.join(missing)}"
        )
    return found


def _pool(data: DataSet) -> Split:
    """Return the train and test images of a set as one split, without writers."""
    halves = data.train, data.test
    images = torch.cat([half.images.permute(0, 2, 3, 1) for half in halves]).permute(0, 3, 1, 2)
    return Split(images, torch.cat([half.labels for half in halves]))


def _client(data: DataSet, client: int, stream: torch.Generator) -> list[Split]:
    """Return train, test and validation split of one client of Mixed-NonIID; the images still have their own shape."""
    if max(data.shape[1:]) > _SIDE:
        size = "x".join(map(str, data.shape[1:]))
        raise DataError(f"{data.name}: images of {size} do not fit into {_SIDE}x{_SIDE}; shrink them")
    pool = _pool(data)
    present = torch.unique(pool.labels)
    if len(present) < _CLASSES:
        raise DataError(
            f"{data.name}: has images of {len(present)} classes; mixed-noniid takes {_CLASSES} of each set"
        )
    chosen = present[torch.randperm(len(present), generator=stream)[:_CLASSES]]
    label_of = torch.full((len(data.classes),), -1).index_copy_(0, chosen, torch.arange(_CLASSES))
    pool = Split(pool.images, label_of[pool.labels], torch.full((len(pool),), client))
    order = torch.randperm(len(pool), generator=stream)
    return [pool.select(rows) for rows in _cut(order[pool.labels[order] >= 0], 7, 9)]


def _cut(rows: Tensor, *tenths: int) -> tuple[Tensor, ...]:
    """Cut rows after so many tenths of them."""
    return rows.tensor_split([len(rows) * tenth // 10 for tenth in tenths])


def _join(parts: Sequence[Split]) -> Split:
    """Return splits one below the other, their images centred on black 32x32 and grey ones copied to three channels."""
    images = torch.zeros(sum(map(len, parts)), _SIDE, _SIDE, 3, dtype=torch.uint8)
    for part, place in zip(parts, torch.split(images, [len(part) for part in parts]), strict=True):
        height, width = part.images.shape[2:]
        top, left = (_SIDE - height) // 2, (_SIDE - width) // 2
        # One channel spreads to three by broadcasting.
        place[:, top : top + height, left : left + width] = part.images.permute(0, 2, 3, 1)
    labels = torch.cat([part.labels for part in parts])
    writers = torch.cat([part.writers for part in parts if part.writers is not None])
    return Split(images.permute(0, 3, 1, 2), labels, writers)
