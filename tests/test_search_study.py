"""The study under benchmarks/search: fair, and done by one command however often it is interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parent.parent / "benchmarks" / "search"
sys.path.append(str(FOLDER))

import numbers_of  # noqa: E402
import settings  # noqa: E402
from variants import VARIANTS, scaled  # noqa: E402

from leanfleet.errors import ExperimentError  # noqa: E402
from leanfleet.nets import NETWORKS  # noqa: E402
from leanfleet.search import FAST, PAPER  # noqa: E402
from leanfleet.search.objectives import hypervolume  # noqa: E402

RECIPES = sorted(FOLDER.glob("*.toml"))
TRAININGS = sorted(FOLDER.glob("training/*.toml"))


def command_module() -> ModuleType:
    # There is another study.py beside other recipes: this one gets a name of its own.
    spec = importlib.util.spec_from_file_location("search_study", FOLDER / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = command_module()


class Place(NamedTuple):
    """Where the smoke study was run, and how the first, interrupted call went."""

    runs: Path
    output: Path
    told: str
    codes: tuple[int, int]

    def main(self, *more: str) -> int:
        given = ["smoke", "--jobs", "1", "--runs", str(self.runs), "--output", str(self.output)]
        found: int = study.main([*given, *more])
        return found

    def files(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.runs.rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Run the smoke study: interrupted by Ctrl-C in the middle of a search, and once more."""
    runs, output = (tmp_path_factory.mktemp(name) for name in ("runs", "output"))
    given = ["smoke", "--jobs", "1", "--runs", str(runs), "--output", str(output)]
    command = [sys.executable, str(FOLDER / "study.py"), *given]
    process = subprocess.Popen(command, start_new_session=True, text=True, stderr=subprocess.PIPE)
    while process.poll() is None and not list(runs.rglob("*.partial")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    return Place(runs, output, told, (process.returncode, study.main(given)))


def test_an_interrupted_study_is_finished_by_the_same_command(place: Place) -> None:
    assert place.codes == (130, 0)
    assert place.told.splitlines()[-1] == "interrupted; everything is kept, the same command goes on"
    found = settings.load(FOLDER / "smoke.toml")
    assert [job.key for job in found.jobs] == ["noise-s0", "uniform-s0", "paper-s0", "fast-s0", "random-s0"]
    for job in found.jobs:
        assert (place.runs / "smoke" / f"{job.key}.json").is_file()
    assert not list(place.runs.rglob("*.partial"))


def test_the_page_has_every_number(place: Place) -> None:
    page = place.output / "smoke"
    told = json.loads((page / "results.json").read_text())
    text = (page / "README.md").read_text()
    assert told["missing"] == []
    assert list(told["strategies"]) == ["uniform", "paper", "fast", "random"]
    paper, fast, uniform = (told["strategies"][name] for name in ("paper", "fast", "uniform"))
    found = settings.load(FOLDER / "smoke.toml")
    assert paper["samples"]["mean"] == found.paper.trials * found.paper.steps * found.paper.batch_size
    assert fast["samples"]["mean"] < paper["samples"]["mean"]
    assert uniform["samples"]["mean"] == 0
    assert paper["ratio_to_paper"]["mean"] == 1
    # At a quarter of the MACs there is no vector; at one rate for all, nothing is gained over itself.
    assert uniform["gain_over_uniform"] == {
        "0.25": None, **{share: {"mean": 0, "std": None} for share in ("0.4", "0.55", "0.7", "0.85")}
    }  # fmt: skip
    for row in (paper, fast):
        (run,) = row["runs"]
        assert run["samples"] == sorted(run["samples"])
        front = np.array(run["front"])
        assert run["hypervolumes"][-1] == pytest.approx(hypervolume(front[:, 1], front[:, 2]), rel=1e-4)
        assert 0 < row["share_outside_training"]["mean"] < 1
    links = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert links == {path.name for path in page.glob("*.png")}
    assert "python benchmarks/search/study.py smoke --jobs 1" in text
    assert str(place.runs.parent) not in text


def test_every_strategy_is_judged_with_the_same_seeds(place: Place) -> None:
    records = [json.loads(path.read_text()) for path in sorted((place.runs / "smoke").glob("*-s0.json"))]
    checkpoints = [c for record in records for c in record.get("checkpoints", [])]
    extremes = {json.dumps(checkpoint["gains"][:2]) for checkpoint in checkpoints}
    assert len(checkpoints) > 4
    assert len(extremes) == 1


def test_what_is_finished_is_left_alone(place: Place) -> None:
    before = place.files()
    page = {path.name: path.read_bytes() for path in (place.output / "smoke").iterdir()}
    assert place.main() == 0
    assert place.files() == before
    assert {path.name: path.read_bytes() for path in (place.output / "smoke").iterdir()} == page


def test_records_of_another_scale_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = place.files()
    assert place.main("--scale", "0.5") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "noise-s0.json: not what smoke.toml asks for" in told
    assert told.count("\n") == 1
    assert place.files() == before


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_ours_is_valid(path: Path) -> None:
    found = settings.load(path)
    assert {"uniform", "paper", "fast", "random"} <= set(found.recipe.strategies)
    assert len({job.key for job in found.jobs}) == len(found.jobs)
    assert found.protocol("paper") == found.paper


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_trainings_compare_the_tables_and_nothing_else(path: Path) -> None:
    recipe = tomllib.loads(path.read_text())
    searched, uniform = recipe["methods"]["searched"], recipe["methods"]["uniform"]
    assert searched == {"method": {"name": "distreal"}}
    assert uniform == {"method": {"name": "distreal", "lut": "uniform"}}
    assert recipe["base"]["network"]["name"] in NETWORKS
    assert path.stem in study.ALL or path.stem == "training-smoke"


def test_trainings_without_a_searched_table_are_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("leanfleet.subnet.lut.Lut.shipped", lambda fingerprint: None)
    before = place.files()
    # Studies are done in the order they are named: the first is finished already.
    assert (
        study.main(
            [
                "smoke",
                "training-smoke",
                "--jobs",
                "1",
                "--runs",
                str(place.runs),
                "--output",
                str(place.output),
            ]
        )
        == 2
    )
    told = capsys.readouterr()
    assert told.out.strip() == str(place.output / "smoke" / "README.md")
    assert "no searched table of digits-cnn comes with the package yet" in told.err
    assert place.files() == before


def test_every_way_of_saving_is_compared_on_its_own() -> None:
    recipes = [settings.load(FOLDER / f"{name}.toml").recipe for name in ("femnist", "densenet")]
    assert all(recipe.strategies == ("uniform", "fast", "random", "paper") for recipe in recipes)
    assert {name for recipe in recipes for name in recipe.compared} == {"uniform", *VARIANTS}
    alone = [
        name for name in VARIANTS if name not in ("paper", "fast", "random") and not name.startswith("fast-")
    ]
    changed = {
        name: {k for k, v in asdict(VARIANTS[name]).items() if v != asdict(PAPER)[k]} for name in alone
    }
    assert all(len(keys) == 1 for name, keys in changed.items() if name != "surrogate"), changed
    assert changed["surrogate"] == {"strategy", "design", "refits"}
    assert {"screening", "seeded", "integer", "common", "measure"} <= set.union(*changed.values())


@given(st.sampled_from(sorted(VARIANTS)), st.floats(0.02, 1.0))
def test_a_scaled_protocol_is_smaller_and_still_one_that_evolution_takes(name: str, scale: float) -> None:
    full, small = VARIANTS[name], scaled(VARIANTS[name], scale)
    assert small.population % 4 == 0
    assert 8 <= small.population <= full.population
    assert small.trials <= full.trials
    assert (small.strategy, small.measure, small.seeds) == (full.strategy, full.measure, full.seeds)
    assert scaled(full, 1.0) == full


def test_scale_keeps_the_ratio_of_what_is_compared() -> None:
    for scale in (0.5, 0.35, 0.25):
        paper, fast = scaled(PAPER, scale), scaled(FAST, scale)
        assert fast.trials / paper.trials == pytest.approx(FAST.trials / PAPER.trials, rel=0.15)
        assert min(fast.refits) >= 4
        assert fast.steps == paper.steps


def test_of_a_short_training_only_what_the_recipe_names_is_smaller() -> None:
    small = scaled(PAPER, 0.25, ("batch_size",))
    assert (small.population, small.generations) == (16, 12)
    assert (small.batch_size, small.steps, small.held_out) == (16, PAPER.steps, PAPER.held_out)


def test_a_front_is_what_no_other_vector_beats() -> None:
    # Two extremes, one good vector, one that costs as much and gains less; two seeds.
    gains = np.array([[0.4, 0.5], [0.0, 0.1], [0.3, 0.4], [0.1, 0.2]])
    checkpoint = {"macs": [100.0, 25.0, 62.5, 62.5], "gains": np.stack([gains, gains], axis=2).tolist()}
    front = numbers_of.Front.of(checkpoint)
    assert front.macs.tolist() == [0.25, 0.625, 1.0]
    assert front.f1.tolist() == [0.0, 0.5, 1.0]
    assert front.f2 == pytest.approx([1.0, 0.25, 0.0])
    assert front.error == pytest.approx([0.0, 0.0, 0.0])
    assert front.hypervolume == pytest.approx(1.1 * 0.1 + 0.6 * 0.75 + 0.1 * 0.25)
    assert front.at(0.8125) == pytest.approx(0.4)
    assert front.at(0.2) is None


def test_common_random_numbers_take_out_what_a_seed_does_to_all() -> None:
    generator = np.random.default_rng(0)
    truth = np.concatenate([[1.0, 0.0], generator.uniform(0, 1, 10)])
    gains = truth[:, None] + generator.normal(0, 0.2, 4)[None, :]
    found = numbers_of.noise(np.stack([gains, 2 * gains], axis=2))
    assert found["common_accuracy"] == pytest.approx(0.0, abs=1e-12)
    assert found["independent_accuracy"] > 0.01
    assert found["rank_loss_accuracy"] == pytest.approx(1.0)
    assert found["predicts_loss"] == pytest.approx(1.0)


def test_small_short_trainings_agree_with_full_ones_that_order_vectors_alike() -> None:
    generator = np.random.default_rng(0)
    truth = np.concatenate([[1.0, 0.0], generator.uniform(0, 1, 10)])
    full = np.stack([truth[:, None].repeat(3, 1), truth[:, None].repeat(3, 1)], axis=2)
    small = np.stack([full[:, :, 0] ** 2, 1 - full[:, :, 1] ** 2], axis=2)
    small[:2, :, 1] = full[:2, :, 1]
    found = numbers_of.agreement(small, full)
    assert found["agrees_accuracy"] == pytest.approx(1.0)
    assert found["agrees_loss"] == pytest.approx(-1.0)
    assert found["full_independent_accuracy"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("points = 6", "point = 6", "point: Extra inputs are not permitted"),
        ("scale = 0.05", "scale = 2", "scale: Input should be less than or equal to 1"),
        ('"random"', '"chance"', "strategies: 'chance' is unknown"),
        ('"paper"', '"papr"', "did you mean 'paper'"),
        ('title = "', "title = ", "not TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text((FOLDER / "smoke.toml").read_text().replace(old, new))
    with pytest.raises(ExperimentError, match=rf"wrong\.toml: .*{told}"):
        settings.load(path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["smok"], "smok: no such study; did you mean 'smoke'"),
        (["smoke", "--only", "papr"], "--only papr: no such strategy in smoke.toml; did you mean 'paper'"),
        (["smoke", "--report-only"], "no search of smoke.toml is finished yet"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    assert study.main([*given, "--runs", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err
