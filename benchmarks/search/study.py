"""Compare ways to search, and what their tables are worth in training; write pages under docs/results/search/.

    python benchmarks/search/study.py --jobs 2                # all studies
    python benchmarks/search/study.py femnist --jobs 2        # one of them

A study is a recipe: femnist.toml beside this file, training/training-femnist.toml, or any path. What is finished stays
and what was begun goes on, so after an interruption the same command does the rest. LEANFLEET_DATA names the folder of
the data sets.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from measuring import FULL_SIZE, check, do
from result_page import write_page
from settings import NOISE, Job, SearchStudy, load
from variants import UNIFORM

from leanfleet.console import clock, progress_bars
from leanfleet.data import load as load_data
from leanfleet.engines.local import default_workers
from leanfleet.errors import ExperimentError, LeanfleetError, StorageError, UserError, did_you_mean
from leanfleet.nets import NETWORKS, build
from leanfleet.search import PAPER
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut

HERE = Path(__file__).parent
ALL = ("femnist", "densenet", "training-femnist", "training-densenet")
_SECONDS_BETWEEN_LINES = 30.0
# Passes over samples that a training step takes, beside one that only measures.
_STEP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = _parse(arguments)
    for name in given.studies or ALL:
        training = HERE / "training" / f"{name}.toml"
        code = _train(training, given) if training.is_file() else _search(name, given)
        if code:
            return code
    return 0


def _search(name: str, given: argparse.Namespace) -> int:
    """Do a study of searches."""
    try:
        study = load(_recipe(name), given.scale)
        folder = given.runs / study.name
        check(study, folder)
        if not given.report_only:
            _run(study, folder, given)
        scale = "" if given.scale is None else f" --scale {given.scale:g}"
        command = f"python benchmarks/search/study.py {study.name}{scale} --jobs {given.jobs}"
        print(write_page(study, folder, given.output / study.name, command))
    except KeyboardInterrupt:
        print("interrupted; everything is kept, the same command goes on", file=sys.stderr)
        return 130
    except LeanfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _train(recipe: Path, given: argparse.Namespace) -> int:
    """Do a study of trainings, which is one of DISTREAL's: with the table of the package, and with one rate for all."""
    network = tomllib.loads(recipe.read_text(encoding="utf-8"))["base"]["network"]["name"]
    reference = NETWORKS[network]
    plan = SubnetPlan.trace(build(network), torch.zeros(1, *reference.shape), reference.keep)
    if Lut.shipped(plan.fingerprint) is None:
        print(
            f"error: {recipe.stem}: no searched table of {network} comes with the package yet: "
            "benchmarks/search/tables.sh makes it", file=sys.stderr,
        )  # fmt: skip
        return 2
    runner = HERE.parent / "studies" / "study.py"
    places = ["--runs", str(given.runs), "--output", str(given.output), "--jobs", str(given.jobs)]
    told = f"python benchmarks/search/study.py {recipe.stem} --jobs {given.jobs}"
    command = [sys.executable, str(runner), str(recipe), *places, "--command", told]
    command += ["--report-only"][: given.report_only]
    # Ctrl-C reaches that process too; it ends by itself, and says so.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Not inherited: a process that is started while a signal is ignored goes on ignoring it.
        return subprocess.run(command, preexec_fn=_hear_interrupts, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "studies", nargs="*", metavar="study", help=f"{', '.join(ALL)}, or a path; all of them"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="records (runs/search)")
    parser.add_argument(
        "--output", type=Path, default=HERE.parent.parent / "docs/results/search", help="folder of the pages"
    )
    parser.add_argument("--jobs", type=_count, default=default_workers(), help="worker processes; one a core")
    parser.add_argument("--scale", type=float, help="of the paper's protocol, instead of the recipe's")
    parser.add_argument("--only", metavar="STRATEGY", nargs="+", default=[], help="these now; the page grows")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the page anew")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if (found := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{found}: should be at least 1")
    return found


def _recipe(name: str) -> Path:
    path = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    if not path.is_file():
        known = [recipe.stem for recipe in (*HERE.glob("*.toml"), *HERE.glob("training/*.toml"))]
        raise ExperimentError(f"{name}: no such study{did_you_mean(name, known)}")
    return path


def _run(study: SearchStudy, folder: Path, given: argparse.Namespace) -> None:
    for strategy in given.only:
        if strategy not in (NOISE, *study.recipe.compared):
            hint = did_you_mean(strategy, [NOISE, *study.recipe.compared])
            raise ExperimentError(f"--only {strategy}: no such strategy in {study.path.name}{hint}")
    jobs = [job for job in study.jobs if not given.only or job.strategy in given.only]
    to_do = [job for job in jobs if not (folder / f"{job.key}.json").is_file()]
    if not to_do:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error
    data = load_data(study.recipe.data)
    with Display(study, to_do) as display:
        for job in to_do:
            display.begin(job)
            do(study, job, data, folder, given.jobs, display)


class Display:
    """Shows how far a study is: a bar on a terminal, elsewhere a plain line now and then.

    Args:
        study: The study.
        to_do: What there is to do.
    """

    def __init__(self, study: SearchStudy, to_do: Sequence[Job]) -> None:
        self._study, self._to_do = study, to_do
        self._work = [_work(study, job) for job in to_do]
        self._bars = progress_bars()
        self._at, self._reached = -1, 0.0
        self._begun = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.add_task(self._study.name, total=sum(self._work), status="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, job: Job) -> None:
        """Take note of what is done next."""
        self._at, self._reached = self._to_do.index(job), 0.0

    def __call__(self, phase: str, share: float) -> None:
        """Show how far the present record is."""
        job, study = self._to_do[self._at], self._study
        searched, judged = _parts(study, job)
        before = searched if phase == "judged" else 0.0
        own = judged if phase == "judged" else searched if phase in ("search", FULL_SIZE) else 0.0
        # The phases between are short: they never set the bar back.
        self._reached = max(self._reached, before + own * min(share, 1.0))
        done = sum(self._work[: self._at]) + self._reached
        left = (time.monotonic() - self._begun) / done * (sum(self._work) - done) if done else None
        line = f"{job.key} {phase} {100 * share:.0f}%, record {self._at + 1}/{len(self._to_do)}, ETA {clock(left)}"
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=done, status=line)
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            print(f"{study.name}: {line}", file=sys.stderr, flush=True)
            self._printed = time.monotonic()


def _work(study: SearchStudy, job: Job) -> float:
    return sum(_parts(study, job))


def _parts(study: SearchStudy, job: Job) -> tuple[float, float]:
    """Return what a job takes to search and to judge, in passes over samples; some vectors are judged once only."""
    recipe, paper = study.recipe, study.paper
    each = _STEP * paper.steps * paper.batch_size + paper.held_out
    if job.strategy == NOISE:
        full = _STEP * PAPER.steps * PAPER.batch_size + paper.held_out
        return float(full * recipe.vectors * recipe.fresh), float(each * recipe.vectors * recipe.fresh)
    if job.strategy == UNIFORM:
        return 0.0, float(each * recipe.points * recipe.fresh)
    protocol = study.protocol(job.strategy)
    trial = _STEP * protocol.steps * protocol.batch_size + protocol.held_out
    judged = each * recipe.points * recipe.fresh * min(study.checkpoints(job.strategy), protocol.questions)
    return float(trial * protocol.trials), float(judged)


if __name__ == "__main__":
    sys.exit(main())
