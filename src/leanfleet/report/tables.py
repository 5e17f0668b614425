"""Tables of what runs came to: mean and deviation over seeds, as plain values and as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from leanfleet.report.notes import federated_notes, notes, rejections, time_notes
from leanfleet.report.records import Group, Record

if TYPE_CHECKING:
    from rich.table import Table

_COSTS = ("macs_total", "server_macs", "bytes_up", "bytes_down", "seconds_virtual", "stragglers")
_TOTALS = ("accuracy", "accuracy_recalibrated", "best_accuracy", *_COSTS)
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


class Spread(TypedDict):
    """Mean and sample standard deviation over runs; the deviation of one run is None."""

    mean: float
    std: float | None


class Tables(TypedDict):
    """All numbers of a report, ready for JSON.

    Attributes:
        seconds_virtual: The fixed times of `accuracy_at`: the quarters of the shortest run, its end last.
        groups: A row each: label, method, seeds, and a `Spread` or None for each quantity.
        runs: A row for each run, with its record's folder.
        notes: What a reader must know beside the numbers.
    """

    seconds_virtual: list[float]
    groups: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    notes: list[str]


def summarise(groups: Sequence[Group]) -> Tables:
    """Return the numbers of a report.

    Accuracies are fractions of hits of the network in use, MACs training MACs of all devices. Accuracy at a fixed
    time is the last one known then.
    """
    records = [record for group in groups for record in group.records]
    times = _fixed_times(records)
    return {
        "seconds_virtual": times,
        "groups": [_group_row(group, times) for group in groups],
        "runs": [_run_row(group, record) for group in groups for record in group.records],
        "notes": [*federated_notes(groups), *notes(groups), *time_notes(groups), *rejections(groups)],
    }


def render(tables: Tables, width: int) -> list[Table]:
    """Return the accuracy table and the cost table for a console of `width` columns.

    Where they do not fit, groups stand side by side in one table of all numbers, as many as there is room for, and
    below that the next ones. Fixed times at which no group had been evaluated are left out, and so are evaluation B and
    a server's MACs where no group has them.
    """
    accuracy, cost = _accuracy_lines(tables), _cost_lines(tables)
    both = [wide("accuracy of the network in use [%]", accuracy), wide("cost", cost)]
    if all(columns(table) <= width for table in both):
        return both
    head, *lines = [one + other[1:] for one, other in zip(accuracy, cost, strict=True)]
    for count in range(len(lines), 1, -1):
        found = [side_by_side(head, lines[at : at + count]) for at in range(0, len(lines), count)]
        if all(columns(table) <= width for table in found):
            return found
    return [narrow(zip(head, line, strict=True)) for line in lines]


def side_by_side(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> Table:
    """Return a table with a column for each line, whose names are those of the head."""
    return wide(None, list(zip(head, *lines, strict=True)))


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return mean and deviation; None unless every run has a value: a mean over some of them would mislead."""
    present = [float(value) for value in values if value is not None]
    if len(present) < len(values):
        return None
    return {
        "mean": statistics.fmean(present),
        "std": statistics.stdev(present) if len(present) > 1 else None,
    }


def percent(spread: Spread | None) -> str:
    """Return a fraction as a percentage, such as `93.1±0.4`; `-` where there is none."""
    if spread is None:
        return "-"
    deviation = "" if spread["std"] is None else f"±{100 * spread['std']:.1f}"
    return f"{100 * spread['mean']:.1f}{deviation}"


def quantity(spread: Spread | None, unit: str = "") -> str:
    """Return a number of anything with an SI prefix, such as `1.23 T` or `45.6 MB`; `-` where there is none."""
    if spread is None:
        return "-"
    value, prefix = _scaled(spread["mean"])
    digits = 0 if not prefix else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def precise(value: float, unit: str = "") -> str:
    """Return a number with six digits and an SI prefix, such as `84.64 GB`: enough to give it again."""
    value, prefix = _scaled(value)
    return f"{value:.6g} {prefix}{unit}".rstrip()


def seconds(value: float) -> str:
    """Return virtual seconds, such as `12.5 s`."""
    return f"{value:.4g} s" if value < 10_000 else f"{value:,.0f} s"


def _scaled(value: float) -> tuple[float, str]:
    index = 0
    while abs(value) >= 999.5 and index < len(_PREFIXES) - 1:
        value, index = value / 1000, index + 1
    return value, _PREFIXES[index]


def _fixed_times(records: Sequence[Record]) -> list[float]:
    ends = [float(r.totals["seconds_virtual"]) for r in records if r.totals]
    shortest = min(ends, default=0.0)
    return [shortest * quarter / 4 for quarter in (1, 2, 3, 4)] if shortest > 0 else []


def _group_row(group: Group, times: Sequence[float]) -> dict[str, Any]:
    records = group.records
    return {
        "label": group.label,
        "method": group.method,
        "family": group.family,
        "seeds": [record.seed for record in records],
        "accuracy_at": [spread_of([r.accuracy_at(t) for r in records]) for t in times],
        **{key: spread_of([_total(r, key) for r in records]) for key in _TOTALS},
        "late_share": spread_of([record.late_share for record in records]),
    }


def _run_row(group: Group, record: Record) -> dict[str, Any]:
    return {
        "record": str(record.folder),
        "label": group.label,
        "method": record.method,
        "family": group.family,
        "seed": record.seed,
        "finished": record.finished,
        "rounds": record.totals.get("rounds", record.totals.get("round", 0)),
        **{key: _total(record, key) for key in _TOTALS},
        "late_share": record.late_share,
    }


def _total(record: Record, key: str) -> float | None:
    value = record.totals.get(key)
    if value is None and key in ("accuracy", "best_accuracy"):
        # A run that is not finished, whose last round had no evaluation.
        accuracies = record.curve("round")[1]
        pick = {"accuracy": lambda: accuracies[-1], "best_accuracy": lambda: max(accuracies)}
        value = pick[key]() if accuracies else None
    return value


def _accuracy_lines(tables: Tables) -> list[tuple[str, ...]]:
    rows = tables["groups"]
    times = [
        (n, at)
        for n, at in enumerate(tables["seconds_virtual"])
        if any(row["accuracy_at"][n] for row in rows)
    ]
    recalibrates = any(row["family"] == "federated" for row in rows)
    final = ("final A", "final B") if recalibrates else ("final",)
    return [
        ("method", *(f"at {seconds(at)}" for _, at in times), *final),
        *(_accuracy_cells(row, [n for n, _ in times], recalibrates) for row in rows),
    ]


def _accuracy_cells(row: dict[str, Any], times: Sequence[int], recalibrates: bool) -> tuple[str, ...]:
    final = (row["accuracy"], *([row["accuracy_recalibrated"]] if recalibrates else []))
    return (row["label"], *map(percent, (*(row["accuracy_at"][n] for n in times), *final)))


def _cost_lines(tables: Tables) -> list[tuple[str, ...]]:
    serves = any(row["server_macs"] and row["server_macs"]["mean"] for row in tables["groups"])
    names = ("MACs", *(("of server",) if serves else ()))
    return [
        ("method", "runs", *names, "up", "down", "stragglers", "late [%]", "time"),
        *(_cost_cells(row, serves) for row in tables["groups"]),
    ]


def _cost_cells(row: dict[str, Any], serves: bool) -> tuple[str, ...]:
    up, down = (quantity(row[key], "B") for key in ("bytes_up", "bytes_down"))
    time = "-" if row["seconds_virtual"] is None else seconds(row["seconds_virtual"]["mean"])
    return (
        row["label"],
        str(len(row["seeds"])),
        quantity(row["macs_total"]),
        *([quantity(row["server_macs"])] if serves else []),
        up,
        down,
        quantity(row["stragglers"]),
        percent(row["late_share"]),
        time,
    )


def wide(title: str | None, lines: Sequence[tuple[str, ...]]) -> Table:
    """Return a table of which the first line is the head; the first column stands to the left, others to the right."""
    table = empty_table(title)
    for number, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def columns(table: Table) -> int:
    """Return how many columns of a console a table takes."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=1000)
    return Measurement.get(console, console.options, table).maximum


def narrow(pairs: Iterable[tuple[str, str]]) -> Table:
    """Return a table of two columns, of names and values; the first pair is its head."""
    table = empty_table(None)
    for pair in pairs:
        if table.columns:
            table.add_row(*pair)
        else:
            table.add_column(pair[0])
            table.add_column(pair[1], justify="right", overflow="fold")
    return table


def empty_table(title: str | None) -> Table:
    """Return a table without columns, in the looks of all our tables."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
