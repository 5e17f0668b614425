from collections.abc import Callable
from pathlib import Path

import pytest

from leanfleet.errors import RecordError
from leanfleet.report import group, read

Make = Callable[..., Path]


def test_a_finished_record_has_its_summary_and_its_curve(make: Make) -> None:
    (record,) = read([make("distreal", 3, rounds=6, eval_every=2)])
    assert (record.method, record.seed, record.finished) == ("distreal", 3, True)
    assert record.totals["rounds"] == 6
    assert record.late_share == 0.25
    rounds, accuracies = record.curve("round")
    assert rounds == [2, 4, 6]
    assert accuracies == sorted(accuracies)


def test_an_unfinished_record_stands_at_its_last_round(make: Make) -> None:
    (record,) = read([make(rounds=5, finished=False)])
    assert not record.finished
    assert record.totals["round"] == 5
    assert record.late_share == pytest.approx(0.25)


def test_a_record_without_a_round_reads_as_empty(make: Make) -> None:
    (record,) = read([make(rounds=0, finished=False)])
    assert record.totals == {}
    assert record.late_share is None
    assert record.accuracy_at(10.0) is None


def test_accuracy_at_a_time_is_the_last_one_known_then(make: Make) -> None:
    (record,) = read([make(rounds=6, eval_every=2, round_seconds=10.0)])
    _, (first, second, third) = record.curve("seconds_virtual")
    assert record.accuracy_at(19.9) is None
    assert record.accuracy_at(20.0) == first
    assert record.accuracy_at(39.0) == first
    assert record.accuracy_at(40.0) == second
    assert record.accuracy_at(1e9) == third


def test_seeds_of_one_experiment_are_one_group(make: Make) -> None:
    folders = [make(method, seed) for seed in range(2) for method in ("distreal", "fedavg")]
    groups = group(read(folders))
    assert [g.label for g in groups] == ["distreal", "fedavg"]
    assert [[r.seed for r in g.records] for g in groups] == [[0, 1], [0, 1]]


def test_runs_that_differ_in_a_setting_are_not_averaged(make: Make) -> None:
    folders = [
        make(seed=s, name=f"{n}-s{s}", extra=e)
        for n, e in (("a", ""), ("b", "scale = false"))
        for s in (0, 1)
    ]
    assert [(g.label, len(g.records)) for g in group(read(folders))] == [("a", 2), ("b", 2)]


def test_runs_with_other_lookup_tables_are_not_averaged(make: Make) -> None:
    folders = [make(seed=s) for s in (0, 1, 2)]
    for folder, content in zip(folders, (b"uniform", b"uniform", b"searched"), strict=True):
        (folder / "lut.safetensors").write_bytes(content)
    assert sorted(len(g.records) for g in group(read(folders))) == [1, 2]


def test_groups_of_equal_names_are_told_apart_by_their_folders(make: Make, tmp_path: Path) -> None:
    folders = [make(name="a", extra=e, root=tmp_path / r) for r, e in (("x", ""), ("y", "scale = false"))]
    assert [g.label for g in group(read(folders))] == [str(folder) for folder in folders]


def test_a_folder_of_records_stands_for_all_of_them(make: Make, tmp_path: Path) -> None:
    folders = [make("distreal", seed, root=tmp_path / "comparison") for seed in range(3)]
    assert [r.folder for r in read([tmp_path / "comparison"])] == folders


def test_what_is_no_record_is_refused(make: Make, tmp_path: Path) -> None:
    make()
    with pytest.raises(RecordError, match="distral-s0: no such run record; did you mean 'distreal-s0'"):
        read([tmp_path / "distral-s0"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="empty: not a run record"):
        read([tmp_path / "empty"])


@pytest.mark.parametrize("text", ["not toml [", "[experiment]\nname = 'x'\n", ""])
def test_a_damaged_experiment_file_is_named(make: Make, text: str) -> None:
    folder = make()
    (folder / "experiment.toml").write_text(text)
    with pytest.raises(RecordError, match=r"experiment\.toml: damaged"):
        read([folder])


@pytest.mark.parametrize("over", ["round", "seconds_virtual", "macs_total"])
def test_an_accuracy_between_two_evaluations_lies_between_theirs(make: Make, over: str) -> None:
    (record,) = read([make(rounds=6, eval_every=2)])
    places, (first, second, third) = record.curve(over)
    between = [
        record.interpolated(places[0] + share * (places[1] - places[0]), over) for share in (0, 0.25, 1)
    ]
    assert between == pytest.approx([first, 0.75 * first + 0.25 * second, second])
    assert record.interpolated(0.99 * places[0], over) is None
    assert record.interpolated(9 * places[2], over) == third


def test_a_target_is_reached_at_the_first_evaluation_that_has_it(make: Make) -> None:
    (record,) = read([make(rounds=6, eval_every=2)])
    _, (first, second, third) = record.curve("round")
    assert record.reached(first) == 2
    assert record.reached((first + second) / 2) == 4
    assert record.reached(second, "macs_total") == 4e9
    assert record.reached(third + 0.001) is None


def test_means_that_were_there_add_up_over_rounds(make: Make) -> None:
    folder = make(rounds=2)
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(f'{{"round": {n}, "available_macs": {n}e9}}\n' for n in (3, 4))
    assert read([folder])[0].available_macs == 7e9
