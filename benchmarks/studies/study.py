"""Run a study, all of its scenarios, methods and seeds, and write its page under docs/results/.

    python benchmarks/studies/study.py femnist --jobs 2

A study is a recipe: femnist.toml beside this file, or any path. What is finished stays and what was begun goes on, so
after an interruption the same command does the rest. LEANFLEET_DATA names the folder of the data sets.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pages import write_page
from progress import Display
from recipe import HERE, Study, load
from runner import check, work

from leanfleet.engines.describe import machine
from leanfleet.engines.local import default_workers
from leanfleet.engines.staff import check_device
from leanfleet.errors import ExperimentError, LeanfleetError, UserError, did_you_mean
from leanfleet.runs import Run
from leanfleet.storage import write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = _parse(arguments)
    try:
        study = load(_recipe(given.study))
        folder = given.runs / study.name
        _check_only(study, given.only)
        check(study, folder)
        failures = {} if given.report_only else _run(study, folder, given)
        page = write_page(study, folder, given.output / study.name)
        print(page)
    except KeyboardInterrupt:
        print("interrupted; every record is kept, the same command goes on", file=sys.stderr)
        return 130
    except LeanfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    for key, why in failures.items():
        print(f"failed: {folder / key}: {why}", file=sys.stderr)
    return 1 if failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", help="femnist, cifar10, split/cifar, ..., or a path to a recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the records (runs)")
    parser.add_argument(
        "--output", type=Path, default=HERE.parent.parent / "docs" / "results", help="folder of the pages"
    )
    parser.add_argument("--jobs", type=_count, help="runs side by side; one a core, one on a GPU")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")
    parser.add_argument("--only", metavar="SCENARIO", nargs="+", default=[], help="run these scenarios only")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the page anew")
    parser.add_argument("--command", help="what the page says made it; this command if not given")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: should be a number from 1 on")
    return int(text)


def _recipe(name: str) -> Path:
    path = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    if not path.is_file():
        known = [path.relative_to(HERE).with_suffix("").as_posix() for path in HERE.rglob("*.toml")]
        raise ExperimentError(f"{name}: no such study{did_you_mean(name, known)}")
    return path


def _check_only(study: Study, scenarios: Sequence[str]) -> None:
    for scenario in scenarios:
        if scenario not in study.recipe.scenarios:
            raise ExperimentError(
                f"--only {scenario}: no such scenario{did_you_mean(scenario, study.recipe.scenarios)}"
            )


def _run(study: Study, folder: Path, given: argparse.Namespace) -> dict[str, str]:
    """Run what is not finished; return what went wrong, by record."""
    wanted = [task for task in study.tasks if not given.only or task.scenario in given.only]
    to_do = [task for task in wanted if not Run(folder / task.key).finished]
    if not to_do:
        return {}
    check_device(given.device)
    jobs = given.jobs or (default_workers() if given.device == "cpu" else 1)
    session = _Session(study, folder, jobs, given)
    with Display(study.name, wanted, folder, jobs) as display:
        return work(to_do, folder, jobs, given.device, display, session.keep)


class _Session:
    """What one call of this command took, and on what machine; the page sums them up."""

    def __init__(self, study: Study, folder: Path, jobs: int, given: argparse.Namespace) -> None:
        self._begun, self._clock = datetime.now(UTC), time.monotonic()
        self._folder = folder
        there = machine()
        self._fields: dict[str, Any] = {
            "command": given.command or _command(study, jobs, given),
            "leanfleet": there["leanfleet"],
            "python": there["python"],
            "torch": there["packages"]["torch"],
            "cpu": there["cpu"],
            "cores": there["cores"],
            "gpu": there["gpus"][0] if there["gpus"] and given.device != "cpu" else None,
        }

    def keep(self) -> None:
        """Write it down, beside the records."""
        self._folder.mkdir(parents=True, exist_ok=True)
        fields = {"begun": f"{self._begun:%Y-%m-%d %H:%M} UTC", **self._fields}
        fields["seconds_wall"] = round(time.monotonic() - self._clock, 1)
        write_json(self._folder / f"session-{self._begun:%Y%m%dT%H%M%S}.json", fields)


def _command(study: Study, jobs: int, given: argparse.Namespace) -> str:
    # Another folder's recipe is given by its path.
    inside = study.path.resolve().is_relative_to(HERE)
    given_as = study.name if inside else os.path.relpath(study.path.resolve(), HERE.parents[1])
    only = f" --only {' '.join(given.only)}" if given.only else ""
    return f"python benchmarks/studies/study.py {given_as}{only} --jobs {jobs} --device {given.device}"


if __name__ == "__main__":
    sys.exit(main())
