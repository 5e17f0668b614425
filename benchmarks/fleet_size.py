"""Seconds a round, memory and size of the record for fleets of many sizes, the same number selected in a round.

    python benchmarks/fleet_size.py

Every run has a process of its own, and the sizes take turns, so that none has the quieter half of the time. Prints
Markdown tables and writes them to docs/results/fleet-size/, with all numbers. Linux only: nowhere else does the system
say how much memory another process has used at most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import track

from leanfleet.engines.describe import machine
from leanfleet.engines.local import Progress, run
from leanfleet.engines.staff import Staff
from leanfleet.errors import LeanfleetError, UserError
from leanfleet.experiment import Experiment, override
from leanfleet.nets import NETWORKS
from leanfleet.runs import Run
from leanfleet.storage import write_json, write_text

OUTPUT = Path(__file__).parent.parent / "docs" / "results" / "fleet-size"
SAMPLES = 60
SETTINGS = (
    "data.source=digits",
    f"data.partition=iid({SAMPLES})",
    "method.name=distreal",
    "fleet.availability=exponential",
)
MB = 1e6


@dataclass(frozen=True)
class Measured:
    """What one run took.

    Attributes:
        devices: Size of the fleet.
        workers: Worker processes; with one, the work is done in the process of the server.
        seed: Seed of the run: which devices are selected, what they can spend, what is dropped.
        seconds_startup: From the call to the end of the first round, without imports.
        seconds_round: Of every round but the first and the last, which evaluates.
        peak_mb: Peak resident memory of the server's process, then of every worker process.
        record_mb: Size of the record's files at the end.
        macs: Training MACs of all devices in all rounds.
    """

    devices: int
    workers: int
    seed: int
    seconds_startup: float
    seconds_round: tuple[float, ...]
    peak_mb: tuple[float, ...]
    record_mb: float
    macs: float


def experiment(devices: int, seed: int, rounds: int, per_round: int, network: str) -> Experiment:
    """Return what is run; evaluations cost the same for every fleet and would only hide what does not."""
    own = (
        f"fleet.devices={devices}",
        f"fleet.per_round={per_round}",
        f"experiment.rounds={rounds}",
        f"experiment.eval_every={rounds}",
        f"experiment.seed={seed}",
        f"network.name={network}",
    )
    return override(Experiment(), [*SETTINGS, *own])


def measure(asked: Experiment, workers: int) -> Measured:
    """Run an experiment in this process, which should have run no other before."""
    begin, marks = time.perf_counter(), list[float]()

    def watch(progress: Progress) -> None:
        if progress.round == 1 and not marks:
            marks.append(time.perf_counter() - begin)

    with TemporaryDirectory() as folder, Staff() as staff:
        record = run(asked, root=Path(folder), workers=workers, watch=watch, staff=staff)
        pids = [os.getpid(), *(process.pid or 0 for process in multiprocessing.active_children())]
        ends = [event["seconds_wall"] for event in record.events()]
        return Measured(
            devices=asked.fleet.devices or 0,
            workers=workers,
            seed=asked.experiment.seed,
            seconds_startup=marks[0],
            seconds_round=tuple(end - before for before, end in pairwise(ends[:-1])),
            peak_mb=tuple(peak_bytes(pid) / MB for pid in pids),
            record_mb=size_bytes(record) / MB,
            macs=(record.summary() or {})["macs_total"],
        )


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had resident.

    What `getrusage` says is no good: a new process begins with the peak of the one that started it.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def size_bytes(record: Run) -> int:
    """Return the size of all files of a record."""
    return sum(path.stat().st_size for path in record.folder.iterdir())


def measure_all(given: argparse.Namespace) -> list[Measured]:
    """Measure every fleet with every number of workers, the repeats outermost."""
    todo = list(product(range(given.repeats), given.workers, given.devices))
    found = []
    for seed, workers, devices in track(todo, description="runs", console=Console(stderr=True)):
        asked = experiment(devices, seed, given.rounds, given.per_round, given.network)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            found.append(fresh.submit(measure, asked, workers).result())
    return found


@dataclass(frozen=True)
class Row:
    """All repeats of one fleet with one number of workers."""

    repeats: Sequence[Measured]

    @property
    def seconds(self) -> list[float]:
        return [statistics.median(one.seconds_round) for one in self.repeats]

    @property
    def memory(self) -> list[float]:
        return [sum(one.peak_mb) for one in self.repeats]

    def cells(self, least: Row) -> Iterator[str]:
        yield f"{self.repeats[0].devices:,}"
        for own, other, digits in ((self.seconds, least.seconds, 4), (self.memory, least.memory, 1)):
            yield f"{statistics.median(own):.{digits}f} ({min(own):.{digits}f})"
            yield f"{statistics.median(own) / statistics.median(other):.3f}"
        startup = [one.seconds_startup for one in self.repeats]
        yield f"{statistics.median(startup):.2f} ({min(startup):.2f})"
        yield f"{statistics.median(one.record_mb for one in self.repeats):.3f}"


def rows_of(found: Sequence[Measured], workers: int) -> list[Row]:
    """Return a row for each size of the fleet, the smallest first."""
    mine = [one for one in found if one.workers == workers]
    sizes = sorted({one.devices for one in mine})
    return [Row([one for one in mine if one.devices == devices]) for devices in sizes]


def markdown(found: Sequence[Measured]) -> Iterator[str]:
    """Yield the lines of the tables."""
    for workers in sorted({one.workers for one in found}):
        rows = rows_of(found, workers)
        yield "**In the server's process**" if workers == 1 else f"**{workers} worker processes**"
        yield ""
        yield "| devices | seconds a round | ratio | peak memory, MB | ratio | start-up, s | record, MB |"
        yield "|---:|---:|---:|---:|---:|---:|---:|"
        for row in rows:
            yield f"| {' | '.join(row.cells(rows[0]))} |"
        yield ""


def page(found: Sequence[Measured], told: dict[str, Any], given: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Does a round cost more in a larger fleet?\n"
    yield (
        f"{given.per_round} devices are selected in a round, whatever the size of the fleet; each holds {SAMPLES} "
        f"images of the digits (`iid({SAMPLES})`: in larger fleets the same images again). DISTREAL, "
        f"{given.network}, exponential availability, {given.rounds} rounds.\n"
    )
    yield from markdown(found)
    indices = 8 * SAMPLES * max(given.devices) / MB
    yield (
        f"Median over the repeats, {given.repeats} of each (in brackets the least), a seed each; ratios of medians, to "
        "the smallest fleet. **Seconds a round**: median over the rounds between the first and the last, checkpoints "
        "included, evaluations not. **Peak memory**: resident, with shared pages counted in each of the processes; the "
        f"data indices of the largest fleet are {indices:.1f} MB of it, once for the server and once for each worker. "
        "**Start-up**: from the call to the end of the first round, without imports. **Record**: all its files "
        "at the end; it has two checkpoints, with what each device has spent (8 bytes each).\n"
    )
    yield "| made with | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in told.items())
    yield "\nAll numbers are in [results.json](results.json)."


def describe(begun: datetime, seconds: float, load: float) -> dict[str, Any]:
    """Return what the numbers were made with."""
    there = machine()
    return {
        "command": shlex.join(["python", "benchmarks/fleet_size.py", *sys.argv[1:]]),
        "begun": f"{begun:%Y-%m-%d %H:%M} UTC",
        "seconds": round(seconds),
        "leanfleet": there["leanfleet"],
        "python": there["python"],
        "torch": there["packages"]["torch"],
        "cpu": there["cpu"],
        "cores": there["cores"],
        "load average before": round(load, 2),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[100, 1000, 10_000], help="sizes of the fleet"
    )
    parser.add_argument("--rounds", type=int, default=12, help="rounds a run, from 3 (default: %(default)s)")
    parser.add_argument("--per-round", type=int, default=10, help="devices a round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default: 1 2)"
    )
    parser.add_argument("--network", default="digits-cnn", choices=sorted(NETWORKS))
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the page")
    given = parser.parse_args()
    if given.rounds < 3 or min(given.repeats, *given.workers) < 1:
        parser.error("--rounds: at least 3; --repeats and --workers: at least 1")
    return given


def main() -> int:
    given = parse()
    begun, clock, load = datetime.now(UTC), time.monotonic(), os.getloadavg()[0]
    try:
        found = measure_all(given)
        told = describe(begun, time.monotonic() - clock, load)
        given.output.mkdir(parents=True, exist_ok=True)
        runs = [asdict(one) for one in found]
        settings = {name: value for name, value in vars(given).items() if name != "output"}
        write_json(given.output / "results.json", {**told, "settings": settings, "runs": runs})
        write_text(given.output / "README.md", "\n".join(page(found, told, given)) + "\n")
    except LeanfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    print(*markdown(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
