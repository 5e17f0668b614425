"""Seconds an iteration and memory of a simulated gossip fleet, per node, for fleets of many sizes.

    python benchmarks/gossip_size.py

Every run has a process of its own. Prints a Markdown table and writes it to docs/results/gossip-size/, with all
numbers. Linux only: nowhere else does the system say how much memory a process has used at most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from leanfleet.engines.describe import machine
from leanfleet.engines.local import Progress, run
from leanfleet.errors import LeanfleetError
from leanfleet.experiment import Experiment, override
from leanfleet.storage import write_json, write_text

OUTPUT = Path(__file__).parent.parent / "docs" / "results" / "gossip-size"
METHODS = {
    "sparse-push": ("method.density=0.01",),
    "sparse-push, running sums": ("method.density=0.01", "fleet.loss_rate=0.1"),
}
MB = 1e6


@dataclass(frozen=True)
class Measured:
    """What one run took.

    Attributes:
        method: What was run.
        nodes: Size of the fleet.
        seconds_iteration: Training and exchange of all nodes; the quickest one after the first.
        seconds_round_end: From a round's last iteration to the next round's first: states, checkpoint.
        peak_bytes: Most resident memory of the process.
        start_bytes: The same before the run.
    """

    method: str
    nodes: int
    seconds_iteration: float
    seconds_round_end: float
    peak_bytes: int
    start_bytes: int


def experiment(method: str, nodes: int, given: argparse.Namespace) -> Experiment:
    """Return what is run; evaluations would cost each node the same, and only hide what does not."""
    own = (
        "data.source=digits",
        "data.partition=iid(60)",
        "method.name=sparse-push",
        f"network.name={given.network}",
        f"fleet.devices={nodes}",
        "fleet.graph=exponential",
        "experiment.rounds=3",
        "experiment.eval_every=3",
        f"training.iterations={given.iterations}",
        "training.batch_size=8",
    )
    return override(Experiment(), [*own, *METHODS[method]])


def measure(method: str, nodes: int, given: argparse.Namespace) -> Measured:
    """Run an experiment in this process, which should have run no other before."""
    asked, marks = experiment(method, nodes, given), list[tuple[int, float, float]]()
    # A run of two nodes first: what is imported with it is no memory of nodes.
    with TemporaryDirectory() as folder:
        run(experiment(method, 2, given), root=Path(folder), workers=1)
    start = peak_bytes()

    def watch(progress: Progress) -> None:
        marks.append((progress.round, progress.share, time.perf_counter()))

    with TemporaryDirectory() as folder:
        run(asked, root=Path(folder), workers=1, watch=watch)
    pairs = [(one, other) for one, other in pairwise(marks) if other[0] < 3]
    iterations = [b[2] - a[2] for a, b in pairs if a[0] == b[0] and b[1] > a[1] > 0]
    ends = [b[2] - a[2] for a, b in pairs if b[0] > a[0]]
    return Measured(method, nodes, min(iterations), min(ends), peak_bytes(), start)


def peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def markdown(found: Sequence[Measured]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| method | nodes | ms a node and iteration | ms a node at the end of a round | MB a node |"
    yield "|---|---:|---:|---:|---:|"
    for one in found:
        per_node = (
            1e3 * one.seconds_iteration,
            1e3 * one.seconds_round_end,
            (one.peak_bytes - one.start_bytes) / MB,
        )
        cells = " | ".join(f"{value / one.nodes:.2f}" for value in per_node)
        yield f"| {one.method} | {one.nodes:,} | {cells} |"


def growth(found: Sequence[Measured]) -> Iterator[str]:
    """Yield the answer: by what a node costs more in the largest fleet than in one of middling size."""
    yield ""
    for method in METHODS:
        own = [one for one in found if one.method == method]
        if len(own) < 2:
            continue
        small, large = own[len(own) // 2 - 1], own[-1]
        times = [large.seconds_iteration / large.nodes, small.seconds_iteration / small.nodes]
        taken = [(one.peak_bytes - one.start_bytes) / one.nodes for one in (large, small)]
        yield (
            f"{method}: from {small.nodes:,} to {large.nodes:,} nodes an iteration costs a node "
            f"{times[0] / times[1]:.2f} times as much time, and {taken[0] / taken[1]:.2f} times as much memory.\n"
        )


def page(found: Sequence[Measured], given: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Does a node cost more in a larger gossip fleet?\n"
    yield (
        f"{given.network}, one-peer exponential graph, batches of 8, density 0.01, one process. **Iteration**: "
        "training and exchange, the quickest of all. **End of a round**: all states are gathered and written to a "
        "checkpoint. **MB a node**: peak resident memory beyond what a fleet of two needs, through the checkpoints "
        "and the last evaluation.\n"
    )
    yield from markdown(found)
    yield from growth(found)
    there = machine()
    versions = f"leanfleet {there['leanfleet']}, python {there['python']}, torch {there['packages']['torch']}"
    yield (
        f"`{shlex.join(['python', 'benchmarks/gossip_size.py', *sys.argv[1:]])}`: {versions}; {there['cpu']}, "
        f"{there['cores']} cores; seed 0. All numbers are in [results.json](results.json)."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 64, 512, 1000], help="sizes of the fleet")
    parser.add_argument("--iterations", type=int, default=10, help="a round, from 2 (default: %(default)s)")
    parser.add_argument("--network", default="digits-cnn-small")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the page")
    given, found = parser.parse_args(), list[Measured]()
    try:
        for method in METHODS:
            for nodes in given.nodes:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                    found.append(fresh.submit(measure, method, nodes, given).result())
                print(*list(markdown(found[-1:]))[-1:], flush=True)
        given.output.mkdir(parents=True, exist_ok=True)
        write_json(given.output / "results.json", {"runs": [asdict(one) for one in found]})
        write_text(given.output / "README.md", "\n".join(page(found, given)) + "\n")
    except LeanfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
