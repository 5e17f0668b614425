"""The studies under benchmarks/: recipes, and the command that runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from leanfleet.errors import ExperimentError
from leanfleet.report import read
from leanfleet.runs import Run

FOLDER = Path(__file__).parent.parent / "benchmarks" / "studies"
# In front: other benchmarks have a study.py too.
sys.path.insert(0, str(FOLDER))

import recipe  # noqa: E402
import study  # noqa: E402

RECIPES = sorted(FOLDER.rglob("*.toml"))
FAILING = """
title = "One of two fails"
[base.experiment]
rounds = 1
[base.network]
name = "digits-cnn-small"
[base.fleet]
per_round = 2
[scenarios.nowhere]
data.source = "nowhere.parquet"
[scenarios.here]
[methods.one]
method.name = "fedavg"
"""


class Place(NamedTuple):
    """Where a study was run, and how the first, interrupted call went."""

    runs: Path
    output: Path
    interrupted: subprocess.CompletedProcess[str]
    status: int

    def main(self, *more: str, name: str = "smoke") -> int:
        """Give the command once more, in this process."""
        return study.main([name, "--runs", str(self.runs), "--output", str(self.output), *more])

    def files(self) -> dict[Path, int]:
        """Return every file of the records and when it was written."""
        return {path: path.stat().st_mtime_ns for path in self.runs.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Run the smoke study: interrupted by Ctrl-C in the middle of a run, and once more."""
    runs, output = (tmp_path_factory.mktemp(name) for name in ("runs", "output"))
    given = ["smoke", "--runs", str(runs), "--output", str(output), "--jobs", "2"]
    command = [sys.executable, str(FOLDER / "study.py"), *given]
    process = subprocess.Popen(command, start_new_session=True, text=True, stderr=subprocess.PIPE)
    while process.poll() is None and not list(runs.rglob("events.jsonl")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    interrupted = subprocess.CompletedProcess(command, process.returncode, stderr=told)
    return Place(runs, output, interrupted, study.main(given))


def test_an_interrupted_study_is_finished_by_the_same_command(place: Place) -> None:
    assert place.interrupted.returncode == 130
    # On a busy machine there may have been time for a line of progress.
    last = place.interrupted.stderr.splitlines()[-1]
    assert last == "interrupted; every record is kept, the same command goes on"
    assert place.status == 0
    tasks = recipe.load(FOLDER / "smoke.toml").tasks
    records = [Run.open(place.runs / "smoke" / task.key) for task in tasks]
    assert len(list(place.runs.rglob("experiment.toml"))) == len(records) == 7
    for record in records:
        assert record.finished
        assert [event["round"] for event in record.events()] == [1, 2, 3, 4]


def test_the_page_has_every_number(place: Place) -> None:
    page = place.output / "smoke"
    told = json.loads((page / "summary.json").read_text())
    curves = json.loads((page / "curves.json").read_text())
    assert told["missing"] == []
    assert [list(s["labels"]) for s in told["scenarios"].values()] == [
        ["distreal", "fedavg"],
        ["distreal", "distreal-slot"],
    ]
    runs = [place.runs / "smoke" / "constant" / f"distreal-s{seed}" for seed in (0, 1)]
    records = read(runs)
    row = told["scenarios"]["constant"]["labels"]["distreal"]
    # Of methods with limited resources only one is there: it is compared with itself.
    assert told["scenarios"]["constant"]["equal_macs"] == pytest.approx(
        min(r.totals["macs_total"] for r in records)
    )
    assert [run["accuracy"] for run in row["runs"]] == pytest.approx(
        [r.totals["accuracy"] for r in records], rel=1e-5
    )
    assert row["accuracy_at_half"]["mean"] == pytest.approx(
        sum(r.curve("round")[1][0] for r in records) / 2, rel=1e-5
    )
    assert len(told["scenarios"]["constant"]["labels"]["fedavg"]["runs"]) == 1
    assert 0.9 < row["macs_share"]["mean"] < 1
    for record in records:
        rounds, _, macs, accuracies = zip(*curves[f"constant/{record.name}"], strict=True)
        assert (list(rounds), list(accuracies)) == (
            record.curve("round")[0],
            pytest.approx(record.curve("round")[1], rel=1e-4),
        )
        assert list(macs) == pytest.approx(record.curve("macs_total")[0], rel=1e-4)


def test_the_page_can_be_read_where_it_is(place: Place) -> None:
    page = place.output / "smoke"
    text = (page / "README.md").read_text()
    links = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    drawn = {str(path.relative_to(page)) for path in page.rglob("*.png")}
    assert links == drawn
    assert "lambda-2/variants-of-distreal/accuracy-macs.png" in drawn
    assert (page / "recipe.toml").read_text() == (FOLDER / "smoke.toml").read_text()
    assert "| distreal-slot |" in text
    assert "python benchmarks/studies/study.py smoke --jobs 2 --device cpu" in text
    for path in (*page.glob("*.md"), *page.glob("*.json")):
        assert str(place.runs.parent) not in path.read_text()


def test_what_is_finished_is_left_alone(place: Place) -> None:
    before = place.files()
    page = (place.output / "smoke" / "README.md").read_bytes()
    assert place.main() == 0
    assert place.files() == before
    assert (place.output / "smoke" / "README.md").read_bytes() == page


def test_a_run_whose_summary_is_gone_comes_to_the_same(place: Place) -> None:
    record = Run(place.runs / "smoke" / "lambda-2" / "distreal-slot-s1")
    before = record.summary()
    (record.folder / "summary.json").unlink()
    assert place.main("--only", "constant") == 0
    assert not record.finished
    assert "Not finished: 1 of 7 runs" in (place.output / "smoke" / "README.md").read_text()
    assert place.main("--only", "lambda-2", "--jobs", "1") == 0
    after = record.summary()
    assert before is not None
    assert after is not None
    assert {k: v for k, v in after.items() if k != "seconds_wall"} == {
        k: v for k, v in before.items() if k != "seconds_wall"
    }


def test_records_of_another_recipe_are_refused(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "smoke.toml"
    other.write_text((FOLDER / "smoke.toml").read_text().replace("rounds = 4", "rounds = 5"))
    before = place.files()
    assert place.main(name=str(other)) == 2
    told = capsys.readouterr().err
    record = place.runs / "smoke" / "constant" / "distreal-s0"
    assert told.startswith(f"error: {record} (and 6 more): not what smoke.toml asks for")
    assert "it has experiment.rounds = 4, not 5" in told
    assert told.count("\n") == 1
    assert place.files() == before


def test_a_run_that_fails_does_not_hold_up_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some.toml").write_text(FAILING)
    place = Place(tmp_path / "runs", tmp_path / "output", subprocess.CompletedProcess([], 0), 0)
    # As a process leaves it that is killed before it has written a record's first file.
    begun = tmp_path / "runs" / "some" / "here" / "one-s0"
    begun.mkdir(parents=True)
    (begun / ".lock").touch()
    assert place.main("--jobs", "2", name=str(tmp_path / "some.toml")) == 1
    told = capsys.readouterr().err
    failed = tmp_path / "runs" / "some" / "nowhere" / "one-s0"
    assert f"failed: {failed}: {tmp_path / 'nowhere.parquet'}: no such data set" in told
    assert Run(begun).finished
    assert "nowhere/one-s0" in (tmp_path / "output" / "some" / "README.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: recipe.load(path).name)
def test_every_recipe_of_ours_makes_valid_experiments(path: Path) -> None:
    found = recipe.load(path)
    seeds = [task.experiment.experiment.seed for task in found.tasks]
    assert seeds == sorted(seeds)
    assert len(set(seeds)) == max(m.seeds or found.recipe.seeds for m in found.recipe.methods.values())
    assert len({task.key for task in found.tasks}) == len(found.tasks)
    # Equal experiments under two labels would be run, and paid for, twice.
    bare = [
        {**vars(task.experiment), "experiment": task.experiment.experiment.model_copy(update={"name": "any"})}
        for task in found.tasks
    ]
    keys = [f"{task.scenario} {experiment}" for task, experiment in zip(found.tasks, bare, strict=True)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds = 2", "seed = 2", "seed: Extra inputs are not permitted"),
        ("seeds = 2", 'seeds = "2"', "seeds: Input should be a valid integer"),
        ("[methods.fedavg]", "[methods.'../x']", "methods.../x"),
        (
            'variant_of = "distreal"',
            'variant_of = "distral"',
            "unknown label 'distral'; did you mean 'distreal'",
        ),
        ('["constant"]', '["constnat"]', "unknown scenario 'constnat'; did you mean 'constant'"),
        ("fleet.rule =", "fleet.rul =", r"distreal-slot in lambda-2: \[fleet\] rul: unknown key"),
        ("[scenarios.constant]", "[scenarios.constant", "not TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text((FOLDER / "smoke.toml").read_text().replace(old, new))
    with pytest.raises(ExperimentError, match=rf"wrong\.toml: .*{told}"):
        recipe.load(path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["smok"], "smok: no such study; did you mean 'smoke'"),
        (["smoke", "--only", "lambda2"], "--only lambda2: no such scenario; did you mean 'lambda-2'"),
        (["smoke", "--report-only"], "no run of smoke.toml is finished yet"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    assert study.main([*given, "--runs", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err
