"""Late and useful shares of paced and server-assigned devices, against an earlier, independent simulation.

A round is one device whose rate changes `lambda` times a round on average, between 0.2523 and 1 of what the whole
network needs (DenseNet-BC-40, 16 mini-batches of 32). All columns see the same devices. Conventions:

- late: work remains undone at the deadline, because a step crossed it or could not be begun for it;
- useful: MACs of the work that counts over the MACs available, both summed over all rounds. `discard` loses all
  work of a late device, `partial` only the step that crossed the deadline;
- paced devices take the largest of 64 rows, equidistant in MACs, that fits the budget, and stop when told to;
- server-assigned devices have the work of the round fixed by the rate at its start, and lose all of it if late.

Run: `python benchmarks/simulator_table.py`
"""

from __future__ import annotations

import argparse
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from leanfleet.fleet.availability import AvailabilityConfig, availability
from leanfleet.fleet.clock import VirtualClock
from leanfleet.fleet.pacer import Pacer, Rule
from leanfleet.ledger import PHI

MACS_FULL = 72_364_032
QUADRATIC = 0.99083  # the share of the MACs that shrinks with both the input and the output of a layer
MACS_HALF = MACS_FULL * (QUADRATIC / 4 + (1 - QUADRATIC) / 2)
ROWS = [MACS_HALF + (MACS_FULL - MACS_HALF) * k / 63 for k in range(64)]
HETEROFL_LEVELS = (1.0, 0.527, 0.252)
BATCHES, BATCH = 16, 32
SAMPLES = BATCHES * BATCH
ROUND_SECONDS = 60.0
TOLERANCE = 0.02


class Cell(NamedTuple):
    """One cell of the table."""

    late: float | None  # what accepts partial work has no late share
    useful: float

    def __str__(self) -> str:
        return f"{'-' if self.late is None else f'{self.late:.3f}'} / {self.useful:.3f}"

    def minus(self, other: Cell) -> Cell:
        """Return the differences of both shares."""
        late = None if self.late is None or other.late is None else self.late - other.late
        return Cell(late, self.useful - other.useful)

    def largest(self) -> float:
        """Return the larger of both in magnitude."""
        return max(abs(self.late or 0.0), abs(self.useful))


@dataclass(frozen=True)
class Column:
    """How a device works through a round."""

    work: Callable[[Pacer, float], float]
    rule: Rule = "pace"
    margin: float = 0.0
    partial: bool = False


def paced(pacer: Pacer, start_share: float) -> float:
    """Work through the mini-batches as DISTREAL does; return the training MACs of the finished steps."""
    finished = 0.0
    for _ in range(BATCHES):
        budget = pacer.budget(BATCH, ROWS[0])
        if budget is None:
            break
        macs = PHI * ROWS[max(0, bisect_right(ROWS, budget) - 1)] * BATCH
        if not pacer.spend(macs, BATCH):
            break
        finished += macs
    return finished


def exact_fit(pacer: Pacer, start_share: float) -> float:
    """Do what just ends in time if the rate at the start of the round (as a share of the highest) stays."""
    macs = PHI * MACS_FULL * SAMPLES * start_share
    return macs if pacer.spend(macs, SAMPLES) else 0.0


def largest_level(pacer: Pacer, start_share: float) -> float:
    """Do the work of the largest HeteroFL level that ends in time if the rate at the start stays."""
    return exact_fit(pacer, max(level for level in HETEROFL_LEVELS if level <= start_share))


COLUMNS = {
    "Fed. Dropout": Column(exact_fit),
    "HeteroFL": Column(largest_level),
    "slot, discard": Column(paced, rule="slot"),
    "pacing, discard": Column(paced),
    "pacing m=5 %, discard": Column(paced, margin=0.05),
    "pacing, partial": Column(paced, partial=True),
}

# lambda -> the cells of COLUMNS, in order
EXPECTED = {
    changes: dict(zip(COLUMNS, (Cell(*cell) for cell in cells), strict=True))
    for changes, *cells in (
        (0.0, (0.00, 1.00), (0.00, 0.68), (0.00, 0.99), (0.00, 1.00), (0.00, 0.95), (None, 1.00)),
        (0.5, (0.20, 0.76), (0.04, 0.65), (0.12, 0.87), (0.03, 0.97), (0.01, 0.94), (None, 1.00)),
        (1.0, (0.32, 0.62), (0.06, 0.63), (0.21, 0.78), (0.06, 0.94), (0.01, 0.94), (None, 1.00)),
        (2.0, (0.43, 0.47), (0.09, 0.61), (0.34, 0.65), (0.10, 0.90), (0.02, 0.93), (None, 0.99)),
        (4.0, (0.50, 0.38), (0.09, 0.60), (0.50, 0.49), (0.18, 0.82), (0.03, 0.93), (None, 0.99)),
    )
}


def simulate(column: Column, changes_per_round: float, rounds: int, seed: int) -> Cell:
    """Return one cell; each round is another device, later on the global clock than the one before."""
    late, useful, available = 0, 0.0, 0.0
    for number in range(rounds):
        pacer, start_share = begin(column, changes_per_round, number, seed)
        finished = column.work(pacer, start_share)
        late += pacer.late
        useful += finished if column.partial or not pacer.late else 0.0
        available += pacer.available_macs
    return Cell(None if column.partial else late / rounds, useful / available)


def begin(column: Column, changes_per_round: float, number: int, seed: int) -> tuple[Pacer, float]:
    """Return the pacer of one device, and its rate at the start of the round as a share of the highest."""
    device = availability(
        AvailabilityConfig("exponential", 4.0, changes_per_round, ROUND_SECONDS),
        macs_full=MACS_FULL,
        macs_half=MACS_HALF,
        samples=SAMPLES,
        seed=seed,
        device=number,
    )
    start = number * ROUND_SECONDS
    clock = VirtualClock(device, start)
    pacer = Pacer(
        clock,
        round_start=start,
        round_seconds=ROUND_SECONDS,
        samples=SAMPLES,
        margin=column.margin,
        rule=column.rule,
    )
    return pacer, clock.rate() * ROUND_SECONDS / (PHI * MACS_FULL * SAMPLES)


def markdown(found: dict[float, dict[str, Cell]]) -> Iterable[str]:
    """Yield the lines of the table; each cell is late share / useful share."""
    yield "| lambda | column | here | expected | difference |"
    yield "|---|---|---|---|---|"
    for changes, cells in found.items():
        for name, cell in cells.items():
            expected = EXPECTED[changes][name]
            yield f"| {changes:g} | {name} | {cell} | {expected} | {cell.minus(expected)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Reproduce the simulator's table of late and useful shares.")
    parser.add_argument("--rounds", type=int, default=20_000, help="rounds a cell (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all devices (default: %(default)s)")
    arguments = parser.parse_args()
    began = time.monotonic()
    found: dict[float, dict[str, Cell]] = {changes: {} for changes in EXPECTED}
    todo = [(changes, name) for changes in EXPECTED for name in COLUMNS]
    for changes, name in track(todo, description="cells", console=Console(stderr=True)):
        found[changes][name] = simulate(COLUMNS[name], changes, arguments.rounds, arguments.seed)
    print(*markdown(found), sep="\n")
    gap = max(found[changes][name].minus(EXPECTED[changes][name]).largest() for changes, name in todo)
    print(
        f"\nlargest difference {gap:.4f} (tolerance {TOLERANCE}) in {len(todo)} cells of {arguments.rounds} rounds"
    )
    print(f"seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    return 0 if gap <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
