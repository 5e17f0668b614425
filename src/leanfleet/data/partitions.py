"""Which samples each device holds: lists of indices into one split, never copies of images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leanfleet.data.dataset import Split
from leanfleet.errors import DataError, did_you_mean
from leanfleet.randomness import key, torch_generator

# What may stand in the brackets: its example, the value taken without brackets, and what it must satisfy.
_ARGUMENTS: dict[str, tuple[str, float | None, Callable[[float], bool]]] = {
    "iid": (
        "iid(60), samples per device from 1",
        None,
        lambda count: count >= 1 and float(count).is_integer(),
    ),
    "dirichlet": ("dirichlet(0.3), a concentration above 0", None, lambda alpha: 0 < alpha < float("inf")),
    "shards": (
        "shards(2), shards per device from 1",
        2,
        lambda shards: shards >= 1 and float(shards).is_integer(),
    ),
    "classes": (
        "classes(2), classes per device from 1",
        None,
        lambda classes: classes >= 1 and float(classes).is_integer(),
    ),
    "skew": ("skew(0.8), a share from 0 (IID) to 1 (sorted by class)", None, lambda share: 0 <= share <= 1),
    "writer": (
        "writer(10), devices per writer from 1",
        None,
        lambda devices: devices >= 1 and float(devices).is_integer(),
    ),
}
# What may stand without brackets and then has no value at all.
_PLAIN = ("iid", "writer")
_NO_WRITERS = "partition '{}': the data set has no writers; name their column with [data] writer"


def parse_partition(spec: str) -> tuple[str, float | None]:
    """Return the name and the argument of a partition, e.g. `("dirichlet", 0.3)`; None if it has no argument.

    Raises:
        DataError: If the name is unknown, or the argument is missing, not wanted or out of range.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", spec)
    name, text = match.groups() if match else (spec, None)
    if name in _PLAIN and text is None:
        return name, None
    if match is None and "(" in spec:
        raise DataError(f"partition '{spec}': should be a name, or a name and a number, such as skew(0.8)")
    if name not in _ARGUMENTS:
        raise DataError(f"partition '{spec}' is unknown{did_you_mean(name, {*_PLAIN, *_ARGUMENTS})}")
    example, default, valid = _ARGUMENTS[name]
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = None
    if value is None or not valid(value):
        raise DataError(f"partition '{spec}' cannot be read; write for example {example}")
    return name, value


def partition(spec: str, split: Split, devices: int | None, seed: int) -> list[Tensor]:
    """Deal the samples of a split to devices: no device without one, and but for `iid(n)` every sample at most once.

    | spec | who gets what |
    |---|---|
    | `iid` | equal random shares (sizes differ by at most one) |
    | `iid(n)` | n random samples each; the split is dealt again and again, shuffled anew each time, and all samples are held equally often up to one. Any number of devices, none with a sample twice |
    | `dirichlet(alpha)` | each class in shares drawn from a symmetric Dirichlet distribution (Hsu et al. 2019) |
    | `writer` | one writer a device; with fewer devices than writers a random choice of writers |
    | `writer(k)` | up to k devices a writer, in turn; each has a k-th of the writer's samples |
    | `shards(k)` | sorted by class, cut into equal shards, k random ones a device (McMahan et al. 2017); k = 2 if not said. Up to k * devices - 1 samples are left over |
    | `classes(k)` | the classes are shuffled and cut into groups of k (the last has those left), one group a device. With fewer devices than groups, the other groups' samples are left over; with more, the groups go round again and those who hold the same one share each of its classes equally |
    | `skew(s)` | a share s of each class is dealt in order of class, the rest at random (Aketi et al. 2021); equal sizes; 0 is IID, 1 is sorted by class |

    Args:
        spec: One of the above.
        split: What is dealt.
        devices: How many devices there are. None means one a writer, and is for `writer` only.
        seed: The same seed gives the same partition.

    Returns:
        One int64 tensor of row numbers of `split` a device.

    Raises:
        DataError: If the specification is malformed, does not fit the split, or leaves devices without samples.
    """  # noqa: E501 (a table row cannot be broken)
    name, argument = parse_partition(spec)
    if name == "writer" and argument is None:
        return _writer(split, devices, seed)
    if devices is None or devices < 1:
        raise DataError(f"partition '{spec}' needs the number of devices, at least 1, not {devices}")
    if name == "iid" and argument is not None:
        return _iid_repeated(split, devices, int(argument), seed)
    if devices > len(split):
        raise DataError(
            f"partition '{spec}' would leave {devices - len(split)} of {devices} devices empty: there are only "
            f"{len(split)} samples; take fewer devices"
        )
    if name == "iid":
        return _iid(split, devices, seed)
    assert argument is not None
    return _DEALERS[name](split, devices, argument, seed)


# flwr-datasets' IidPartitioner does not shuffle, and its NaturalIdPartitioner walks over all samples in Python behind
# a progress bar; both build a table a device, 0.7 ms each. What they decide fits in a line, so it stands here.


def _iid(split: Split, devices: int, seed: int) -> list[Tensor]:
    return list(_shuffled(len(split), seed).tensor_split(devices))


def _iid_repeated(split: Split, devices: int, each: int, seed: int) -> list[Tensor]:
    size = len(split)
    if each > size:
        raise DataError(
            f"partition 'iid({each})' would give devices a sample twice: there are only {size}; "
            f"take iid({size}) at most"
        )
    stream = torch_generator(seed, "partition")
    starts = range(0, devices * each, size)
    rows = torch.empty(len(starts) * size, dtype=torch.int64)
    for start in starts:
        again = torch.randperm(size, generator=stream)
        # So many samples the device at the seam has from the pass before; it takes the rest from this one.
        held = start % each
        if held:
            _put_off(again, rows[start - held : start], each - held)
        rows[start : start + size] = again
    return list(torch.split(rows[: devices * each], each))


def _put_off(order: Tensor, held: Tensor, first: int) -> None:
    """Exchange those of the `first` rows of `order` that are in `held` for the next that are not, in place."""
    clash = torch.isin(order, held)
    early = clash[:first].nonzero().flatten()
    later = (~clash[first:]).nonzero().flatten()[: len(early)] + first
    order[torch.cat([early, later])] = order[torch.cat([later, early])]


def _writer(split: Split, devices: int | None, seed: int) -> list[Tensor]:
    if split.writers is None:
        raise DataError(_NO_WRITERS.format("writer"))
    ordered = split.writers.argsort(stable=True)
    counts = torch.unique(split.writers, return_counts=True)[1]
    writers = len(counts)
    wanted = writers if devices is None else devices
    if not 1 <= wanted <= writers:
        raise DataError(
            f"partition 'writer' makes 1 to {writers} devices, one a writer, not {wanted}: "
            f"{max(wanted - writers, 0)} would be left empty; take at most {writers}"
        )
    parts = torch.split(ordered, counts.tolist())
    return [parts[index] for index in _shuffled(writers, seed)[:wanted].sort().values.tolist()]


def _shared(split: Split, devices: int, each: float, seed: int) -> list[Tensor]:
    if split.writers is None:
        raise DataError(_NO_WRITERS.format(f"writer({each:g})"))
    order = _shuffled(len(split), seed)
    ordered = order[split.writers[order].argsort(stable=True)]
    pools = torch.split(ordered, torch.unique(split.writers, return_counts=True)[1].tolist())
    writers, most = len(pools), len(pools) * int(each)
    parts = [pools[device % writers][device // writers :: int(each)] for device in range(devices)]
    empty = sum(len(part) == 0 for part in parts[:most]) + max(devices - most, 0)
    if empty:
        raise DataError(
            f"partition 'writer({each:g})' would leave {empty} of {devices} devices empty: there are {writers} writers "
            f"for up to {each:g} devices each; take fewer devices"
        )
    return parts


def _skew(split: Split, devices: int, share: float, seed: int) -> list[Tensor]:
    by_class = _by_class(split, seed)
    counts = torch.unique(split.labels, return_counts=True)[1]
    # Rounded, not cut: 6250 * (1 - 0.8) is 1249.99..., and a sample would be lost.
    pairs = [(rows, round(share * len(rows))) for rows in torch.split(by_class, counts.tolist())]
    in_order = torch.cat([rows[:cut] for rows, cut in pairs])
    rest = torch.cat([rows[cut:] for rows, cut in pairs])
    rest = rest[torch.randperm(len(rest), generator=torch_generator(seed, "partition", "rest"))]
    # tensor_split gives what is left over to the first devices; reversed, the rest's leftovers go to the last, and
    # the sizes of whole devices still differ by at most one.
    pools = zip(in_order.tensor_split(devices), rest.tensor_split(devices)[::-1], strict=True)
    return [torch.cat(pool) for pool in pools]


def _classes(split: Split, devices: int, each: float, seed: int) -> list[Tensor]:
    group = _class_groups(split.labels, int(each), seed)
    groups = int(group.max()) + 1
    by_class = _by_class(split, seed)
    pools = [by_class[group[by_class] == index] for index in range(min(groups, devices))]
    holders = [len(range(index, devices, groups)) for index in range(len(pools))]
    empty = sum(max(count - len(pool), 0) for count, pool in zip(holders, pools, strict=True))
    if empty:
        raise DataError(
            f"partition 'classes({each:g})' would leave {empty} of {devices} devices empty: their groups of classes "
            "have fewer samples than devices; take fewer devices"
        )
    # In steps through the sorted pool, so that those who share a group hold its classes alike.
    return [pools[device % groups][device // groups :: holders[device % groups]] for device in range(devices)]


def _class_groups(labels: Tensor, each: int, seed: int) -> Tensor:
    """Return the group of every sample, int64 `[N]`, when the classes that occur are shuffled and cut into groups."""
    present, index = torch.unique(labels, return_inverse=True)
    if each > len(present):
        raise DataError(
            f"partition 'classes({each})' cannot be dealt: there are only {len(present)} classes; "
            f"take classes({len(present)}) at most"
        )
    place = torch.randperm(len(present), generator=torch_generator(seed, "partition", "classes"))
    return (place // each)[index]


def _dirichlet(split: Split, devices: int, alpha: float, seed: int) -> list[Tensor]:
    from flwr_datasets.partitioner import DirichletPartitioner

    def draw(at_least: int) -> list[Tensor]:
        return _by_flower(DirichletPartitioner(devices, "label", alpha, at_least, seed=_seed(seed)), split)

    try:
        return draw(at_least=1)
    except ValueError:  # ten draws, and each left somebody empty; draw once more to say how many
        empty = sum(len(rows) == 0 for rows in draw(at_least=0))
        raise DataError(
            f"partition 'dirichlet({alpha:g})' leaves devices empty in every draw ({empty} of {devices} "
            "in one of them); take fewer devices or a larger concentration"
        ) from None


def _shards(split: Split, devices: int, each: float, seed: int) -> list[Tensor]:
    from flwr_datasets.partitioner import ShardPartitioner

    shards = int(each)
    if devices * shards > len(split):
        raise DataError(
            f"partition 'shards({shards})' would leave {devices - len(split) // shards} of {devices} devices "
            f"without their {shards} shards: there are only {len(split)} samples; take fewer devices or shards"
        )
    return _by_flower(
        ShardPartitioner(devices, "label", num_shards_per_partition=shards, seed=_seed(seed)), split
    )


_DEALERS: dict[str, Callable[[Split, int, float, int], list[Tensor]]] = {
    "dirichlet": _dirichlet,
    "shards": _shards,
    "classes": _classes,
    "skew": _skew,
    "writer": _shared,
}


def _by_flower(partitioner: Any, split: Split) -> list[Tensor]:
    """Run one of flwr-datasets' partitioners on a table of labels alone and return the row numbers it dealt."""
    import datasets

    table = {"label": split.labels.numpy(), "row": torch.arange(len(split)).numpy()}
    with warnings.catch_warnings():
        # Its retries are warned of one by one, and its sorting uses a word that pyarrow is about to drop.
        warnings.simplefilter("ignore")
        partitioner.dataset = datasets.Dataset.from_dict(table).with_format("numpy")
        return [
            torch.from_numpy(partitioner.load_partition(device)["row"][:].copy())
            for device in range(partitioner.num_partitions)
        ]


def _by_class(split: Split, seed: int) -> Tensor:
    shuffled = _shuffled(len(split), seed)
    return shuffled[split.labels[shuffled].argsort(stable=True)]


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch_generator(seed, "partition"))


def _seed(seed: int) -> int:
    return key(seed, "partition")
