from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanfleet.engines.compare import (
    FILE,
    begin,
    compare,
    is_comparison,
    is_finished,
    planned,
    resume_comparison,
    variants,
)
from leanfleet.engines.local import Progress, saved_params
from leanfleet.errors import ExperimentError, RecordError
from leanfleet.experiment import Experiment, loads
from leanfleet.runs import Run

TINY = """
[experiment]
name = "tiny"
seed = 5
rounds = 2
[network]
name = "digits-cnn-small"
[fleet]
devices = 4
per_round = 2
[training]
batch_size = 64
[method]
name = "distreal"
scale = false
"""


class StopError(Exception):
    """Stands for Ctrl-C."""


def names(experiments: list[Experiment]) -> list[str]:
    return [experiment.experiment.name for experiment in experiments]


def test_variants_are_methods_times_seeds() -> None:
    found = variants([loads(TINY)], ["distreal", "fedavg"], seeds=2)
    assert names(found) == ["distreal-s5", "distreal-s6", "fedavg-s5", "fedavg-s6"]
    assert [e.experiment.seed for e in found] == [5, 6, 5, 6]


def test_options_hold_for_the_method_of_the_file_only() -> None:
    scaled = variants([loads(TINY)], ["distreal", "federated-dropout"])
    own, other = (experiment.options.model_dump() for experiment in scaled)
    assert own["scale"] is False
    assert other == {"scale": False}  # its own default
    flipped = loads(TINY.replace("distreal", "federated-dropout").replace("false", "true"))
    assert [
        e.options.model_dump()["scale"] for e in variants([flipped], ["federated-dropout", "distreal"])
    ] == [True, True]


def test_several_files_are_told_apart_by_name() -> None:
    other = loads(TINY.replace('"tiny"', '"other"').replace("distreal", "small").replace("scale = false", ""))
    assert names(variants([loads(TINY), other])) == ["tiny-distreal-s5", "other-small-s5"]
    with pytest.raises(ExperimentError, match="two runs would be called tiny-distreal-s5"):
        variants([loads(TINY), loads(TINY)])


def test_an_unknown_method_is_refused_before_anything_runs() -> None:
    with pytest.raises(ExperimentError, match="'fedvg' is unknown; did you mean 'fedavg'"):
        variants([loads(TINY)], ["fedvg"])


def test_what_cannot_run_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="name the small network"):
        compare(variants([loads(TINY)], ["distreal", "small"]), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_comparison_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    experiments = variants([loads(TINY)], ["distreal", "fedavg"], seeds=1)
    whole = compare(experiments, root=tmp_path / "whole", workers=1)

    def stop(progress: Progress) -> None:
        if progress.run.startswith("fedavg"):
            raise StopError

    with pytest.raises(StopError):
        compare(experiments, root=tmp_path / "broken", workers=1, watch=stop)
    folder = tmp_path / "broken" / "comparison"
    assert is_comparison(folder)
    assert not is_finished(folder)
    finished = (folder / "distreal-s5" / "summary.json").stat().st_mtime_ns
    resumed = resume_comparison(folder)
    # No round of the second run was done: it has as many workers as the comparison all the same.
    latest = Run(folder / "fedavg-s5").latest()
    assert latest is not None
    assert latest.state["workers"] == 1
    assert is_finished(folder)
    assert (folder / "distreal-s5" / "summary.json").stat().st_mtime_ns == finished
    for one, other in zip(whole, resumed, strict=True):
        assert one.name == other.name
        left, right = saved_params(one), saved_params(other)
        assert all(left[name].equal(right[name]) for name in left)


def test_a_record_that_was_hardly_begun_is_begun_anew(tmp_path: Path) -> None:
    folder = begin(variants([loads(TINY)], ["fedavg"]), root=tmp_path, name="c", workers=1)
    (folder / "fedavg-s5").mkdir()
    for name in (".lock", ".experiment.toml.123.tmp"):
        (folder / "fedavg-s5" / name).touch()
    (run,) = resume_comparison(folder)
    assert run.folder == folder / "fedavg-s5"
    assert run.finished


def test_what_is_in_the_way_of_a_record_is_not_deleted(tmp_path: Path) -> None:
    folder = begin(variants([loads(TINY)], ["fedavg"]), root=tmp_path, name="c", workers=1)
    (folder / "fedavg-s5").mkdir()
    (folder / "fedavg-s5" / "thesis.tex").touch()
    with pytest.raises(RecordError, match="fedavg-s5: in the way of a new record"):
        resume_comparison(folder)
    assert (folder / "fedavg-s5" / "thesis.tex").exists()


def test_the_plan_remembers_everything_and_its_folder_is_numbered(tmp_path: Path) -> None:
    experiments = variants([loads(TINY)], ["fedavg", "distreal"], seeds=2)
    folders = [begin(experiments, root=tmp_path, name="c", workers=3, device="meta") for _ in range(3)]
    assert [folder.name for folder in folders] == ["c", "c-2", "c-3"]
    plan = planned(folders[1])
    assert list(plan.experiments.values()) == experiments
    assert (plan.workers, plan.device) == (3, "meta")


@pytest.mark.parametrize("text", ["", "[]", '{"experiments": {"a": "[["}, "workers": 1}', '{"workers": 1}'])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RecordError, match=r"comparison\.json: damaged"):
        planned(tmp_path)


def test_a_plan_from_a_stranger_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    evil = {"../out": TINY.replace('"tiny"', '"../out"')}
    (tmp_path / FILE).write_text(json.dumps({"workers": 1, "experiments": evil}))
    with pytest.raises(RecordError, match="damaged"):
        resume_comparison(tmp_path)


def test_a_folder_without_a_plan_is_no_comparison(tmp_path: Path) -> None:
    assert not is_comparison(tmp_path)
    with pytest.raises(RecordError, match="cannot be read"):
        planned(tmp_path)
    assert not Run(tmp_path).finished
