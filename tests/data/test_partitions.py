from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.data import Split, parse_partition, partition
from leanfleet.errors import DataError

EVERY = [
    "iid",
    "dirichlet(5)",
    "writer",
    "writer(2)",
    "shards",
    "shards(3)",
    "classes(2)",
    "skew(0)",
    "skew(0.37)",
    "skew(1)",
]


def a_split(count: int, classes: int = 4, writers: int = 12) -> Split:
    stream = torch.Generator().manual_seed(count)
    labels = torch.randint(0, classes, (count,), generator=stream)
    # every writer at least once
    who = torch.cat([torch.arange(writers), torch.randint(0, writers, (count,), generator=stream)])[:count]
    return Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), labels, who)


def class_counts(split: Split, parts: list[torch.Tensor], classes: int) -> torch.Tensor:
    return torch.stack([torch.bincount(split.labels[rows], minlength=classes) for rows in parts])


@pytest.mark.parametrize("spec", EVERY)
@given(count=st.integers(60, 300), devices=st.integers(1, 10), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=8)
def test_every_sample_at_most_once_nobody_empty_and_the_same_seed_the_same(
    spec: str, count: int, devices: int, seed: int
) -> None:
    split = a_split(count)
    parts = partition(spec, split, devices, seed)
    rows = torch.cat(parts)
    assert rows.dtype == torch.int64
    assert len(parts) == devices
    assert min(map(len, parts)) > 0
    assert len(rows.unique()) == len(rows)
    assert 0 <= int(rows.min()) <= int(rows.max()) < count
    for one, other in zip(parts, partition(spec, split, devices, seed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("spec", [*EVERY, "iid(60)", "iid(70)"])
def test_another_seed_gives_another_partition(spec: str) -> None:
    split = a_split(300)
    one, other = (partition(spec, split, 5, seed) for seed in (0, 1))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("spec", ["iid", "dirichlet(5)", "skew(0.5)"])
@given(count=st.integers(60, 300), devices=st.integers(1, 20))
@settings(deadline=None, max_examples=5)
def test_these_leave_no_sample_over(spec: str, count: int, devices: int) -> None:
    assert sum(map(len, partition(spec, a_split(count), devices, 0))) == count


@given(count=st.integers(1, 120), devices=st.integers(1, 400), seed=st.integers(0, 2**40), data=st.data())
@settings(deadline=None, max_examples=80)
def test_repeated_iid_repeats_no_sample_within_a_device_and_all_equally_often(
    count: int, devices: int, seed: int, data: st.DataObject
) -> None:
    each = data.draw(st.integers(1, count))
    split = a_split(count)
    parts = partition(f"iid({each})", split, devices, seed)
    rows = torch.stack(parts)
    assert rows.dtype == torch.int64
    assert rows.shape == (devices, each)
    assert (rows.sort(1).values.diff(dim=1) > 0).all()
    uses = rows.flatten().bincount(minlength=count)
    assert len(uses) == count
    assert uses.max() - uses.min() <= 1
    assert torch.equal(rows, torch.stack(partition(f"iid({each})", split, devices, seed)))


def test_repeated_iid_shuffles_every_pass_anew() -> None:
    # 8 devices make a pass: 16 that dealt the same one twice would be 8 pairs.
    passes = torch.stack(partition("iid(5)", a_split(40), 16, 0)).reshape(2, 40)
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[0], passes[0].sort().values)


def test_a_device_of_two_passes_is_no_less_random() -> None:
    # Of 10 samples the second device has three of the first pass and four of the next; all are as likely.
    split = a_split(10)
    seam = torch.stack([partition("iid(7)", split, 2, seed)[1] for seed in range(1000)])
    expected = 1000 / 10
    assert ((seam[:, 3:].flatten().bincount(minlength=10) - 4 * expected).abs() < 5 * 400**0.5).all()


def test_repeated_iid_of_10_000_devices_is_one_list_of_rows() -> None:
    parts = partition("iid(60)", a_split(1437), 10_000, 0)
    assert len({rows.untyped_storage().data_ptr() for rows in parts}) == 1
    assert parts[0].untyped_storage().nbytes() < 8 * (600_000 + 1437)


@given(count=st.integers(1, 300), share=st.floats(0, 1), data=st.data())
@settings(deadline=None, max_examples=60)
def test_iid_and_skew_shares_differ_by_at_most_one(count: int, share: float, data: st.DataObject) -> None:
    devices = data.draw(st.integers(1, count))
    for spec in ("iid", f"skew({share})"):
        sizes = [len(rows) for rows in partition(spec, a_split(count), devices, 0)]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == count


def test_skew_of_one_half_gives_each_device_half_its_own_class() -> None:
    labels = torch.tensor([0, 1] * 10)
    split = Split(torch.zeros(20, 1, 1, 1, dtype=torch.uint8), labels)
    first, second = class_counts(split, partition("skew(0.5)", split, 2, 0), 2).tolist()
    assert first[0] >= 5
    assert second[1] >= 5
    assert sum(first) == sum(second) == 10


def test_skew_of_one_is_sorted_by_class() -> None:
    split = a_split(400, classes=10)
    labels = torch.cat([split.labels[rows] for rows in partition("skew(1)", split, 8, 0)])
    assert torch.equal(labels, labels.sort().values)


def test_dirichlet_goes_from_single_classes_to_even_shares() -> None:
    split = a_split(2000)
    spread = [
        (counts / counts.sum(1, keepdim=True)).std(0).mean()
        for counts in (
            class_counts(split, partition(f"dirichlet({a})", split, 5, 0), 4).double() for a in (0.2, 5, 1000)
        )
    ]
    assert spread[0] > spread[1] > spread[2]


def test_shards_hold_few_classes_and_equal_shares() -> None:
    split = Split(torch.zeros(400, 1, 1, 1, dtype=torch.uint8), torch.arange(400) % 4)
    counts = class_counts(split, partition("shards(2)", split, 10, 0), 4)
    assert (counts.sum(1) == 40).all()
    assert ((counts > 0).sum(1) <= 2).all()


@given(each=st.integers(1, 7), devices=st.integers(1, 20), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_classes_deals_whole_groups_and_equal_shares_of_those_that_several_hold(
    each: int, devices: int, seed: int
) -> None:
    split = a_split(400, classes=7)
    counts = class_counts(split, partition(f"classes({each})", split, devices, seed), 7)
    groups = -(-7 // each)
    held = counts > 0
    for device in range(devices):
        ours = device % groups
        last = ours == groups - 1
        assert held[device].sum() == (7 - each * (groups - 1) if last else each)
        assert torch.equal(held[device], held[ours])
        assert not (held[device] & held[:ours].any(0)).any()
        sharers = counts[ours::groups]
        assert sharers.sum(1).max() - sharers.sum(1).min() <= 1
        assert (sharers.max(0).values - sharers.min(0).values).max() <= 1
    dealt = held.any(0)
    assert torch.equal(counts.sum(0)[dealt], torch.bincount(split.labels)[dealt])
    assert bool(dealt.all()) == (devices >= groups)


def test_classes_that_no_sample_has_are_dealt_to_nobody() -> None:
    labels = torch.tensor([2, 9]).repeat(10)
    split = Split(torch.zeros(20, 1, 1, 1, dtype=torch.uint8), labels)
    parts = partition("classes(1)", split, 2, 0)
    assert sorted(split.labels[rows].unique().tolist() for rows in parts) == [[2], [9]]


def test_classes_groups_differ_between_seeds() -> None:
    split = a_split(400, classes=10)
    groups = [
        {tuple(split.labels[rows].unique().tolist()) for rows in partition("classes(2)", split, 5, seed)}
        for seed in range(4)
    ]
    assert all(one != other for number, one in enumerate(groups) for other in groups[:number])


@given(devices=st.none() | st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_writer_gives_a_device_all_of_one_writer(devices: int | None, seed: int) -> None:
    split = a_split(200)
    assert split.writers is not None
    parts = partition("writer", split, devices, seed)
    whose = [int(split.writers[rows[0]]) for rows in parts]
    assert len(set(whose)) == len(parts) == (devices or 12)
    for writer, rows in zip(whose, parts, strict=True):
        assert torch.equal(rows, torch.nonzero(split.writers == writer).flatten())


@given(each=st.integers(1, 3), data=st.data())
@settings(deadline=None, max_examples=20)
def test_devices_that_share_a_writer_share_its_samples(each: int, data: st.DataObject) -> None:
    split = a_split(200, writers=4)
    assert split.writers is not None
    devices = data.draw(st.integers(1, 4 * each))
    parts = partition(f"writer({each})", split, devices, 0)
    assert len(parts) == devices
    for device, rows in enumerate(parts):
        assert (split.writers[rows] == device % 4).all()
        assert abs(len(rows) - int((split.writers == device % 4).sum()) / each) < 1
    assert len(torch.cat(parts).unique()) == sum(map(len, parts)) <= 200
    assert devices < 4 * each or sum(map(len, parts)) == 200


def test_3550_devices_share_one_list_of_rows() -> None:
    parts = partition("iid", a_split(60_000), 3550, 0)
    assert len({rows.untyped_storage().data_ptr() for rows in parts}) == 1


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("iid", ("iid", None)),
        ("iid(60)", ("iid", 60)),
        (" shards ", ("shards", 2)),
        ("shards(4)", ("shards", 4)),
        ("dirichlet( .3 )", ("dirichlet", 0.3)),
        ("skew (1e-1)", ("skew", 0.1)),
    ],
)
def test_specifications_are_read(spec: str, parsed: tuple[str, float | None]) -> None:
    assert parse_partition(spec) == parsed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("idd", "'idd' is unknown; did you mean 'iid'"),
        ("dirichlet 0.3", r"did you mean 'dirichlet'"),
        ("idd(60)", r"'idd\(60\)' is unknown; did you mean 'iid'"),
        ("iid()", r"write for example iid\(60\), samples per device from 1"),
        ("iid(0)", "samples per device from 1"),
        ("iid(-3)", "samples per device from 1"),
        ("iid(2.5)", "samples per device from 1"),
        ("iid(inf)", "samples per device from 1"),
        ("iid(nan)", "samples per device from 1"),
        ("iid(some)", "samples per device from 1"),
        ("writer()", r"write for example writer\(10\), devices per writer from 1"),
        ("writer(0)", "devices per writer from 1"),
        ("writer(1.5)", "devices per writer from 1"),
        ("dirichlet", r"write for example dirichlet\(0.3\)"),
        ("dirichlet()", r"write for example dirichlet\(0.3\)"),
        ("dirichlet(0)", "a concentration above 0"),
        ("dirichlet(inf)", "a concentration above 0"),
        ("dirichlet(nan)", "a concentration above 0"),
        ("dirichlet(a lot)", "a concentration above 0"),
        ("shards(0)", "shards per device from 1"),
        ("shards(1.5)", "shards per device from 1"),
        ("shards(inf)", "shards per device from 1"),
        ("classes", r"write for example classes\(2\), classes per device from 1"),
        ("classes(0)", "classes per device from 1"),
        ("classes(1.5)", "classes per device from 1"),
        ("classes(inf)", "classes per device from 1"),
        ("skew(1.1)", "a share from 0"),
        ("skew(-.1)", "a share from 0"),
        ("", "is unknown"),
    ],
)
def test_a_malformed_specification_gets_a_hint(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        partition(spec, a_split(60), 5, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "devices", "message"),
    [
        ("iid", 63, "3 of 63 devices empty: there are only 60 samples"),
        ("iid", None, "needs the number of devices"),
        ("iid", 0, "at least 1, not 0"),
        ("iid(5)", None, "needs the number of devices"),
        ("iid(5)", 0, "at least 1, not 0"),
        ("shards(7)", 10, "2 of 10 devices without their 7 shards"),
        (
            "classes(5)",
            3,
            r"'classes\(5\)' cannot be dealt: there are only 4 classes; take classes\(4\) at most",
        ),
        ("classes(1)", 60, r"'classes\(1\)' would leave \d+ of 60 devices empty: .*; take fewer devices"),
        ("classes(1)", None, "needs the number of devices"),
        ("dirichlet(0.001)", 50, r"leaves devices empty in every draw \(\d+ of 50"),
        ("writer", 13, "1 to 12 devices, one a writer, not 13: 1 would be left empty"),
        ("writer", 0, "1 to 12 devices"),
        ("writer(2)", 25, r"'writer\(2\)' would leave 1 of 25 devices empty: there are 12 writers"),
        ("writer(2)", None, "needs the number of devices"),
        ("writer(30)", 60, r"would leave \d+ of 60 devices empty"),
    ],
)
def test_a_partition_that_leaves_devices_empty_says_how_many(
    spec: str, devices: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        partition(spec, a_split(60), devices, 0)


def test_writer_without_writers_says_how_to_name_them() -> None:
    split = Split(torch.zeros(9, 1, 1, 1, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))
    for spec in ("writer", "writer(2)"):
        with pytest.raises(DataError, match=r"\[data\] writer"):
            partition(spec, split, 1, 0)


def test_more_samples_a_device_than_there_are_says_how_many_there_are() -> None:
    assert [len(rows) for rows in partition("iid(60)", a_split(60), 3, 0)] == [60, 60, 60]
    with pytest.raises(DataError, match=r"a sample twice: there are only 60; take iid\(60\) at most"):
        partition("iid(61)", a_split(60), 3, 0)
