"""Tables of what runs came to: mean and deviation over seeds, as plain values and as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from leanfleet.experiment import METHODS
from leanfleet.report.records import Group, Record

if TYPE_CHECKING:
    from rich.table import Table

_COSTS = ("macs_total", "bytes_up", "bytes_down", "seconds_virtual", "stragglers")
_TOTALS = ("accuracy", "accuracy_recalibrated", "best_accuracy", *_COSTS)
_COST_NAMES = ("runs", "MACs", "up", "down", "stragglers", "late [%]", "time")
_TABLES = {"uniform": "one rate for all layers (leanfleet search finds better ones)"}
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
        "notes": _notes(groups),
    }


def render(tables: Tables, width: int) -> list[Table]:
    """Return the accuracy table and the cost table for a console of `width` columns.

    Where they do not fit, a small table for each group takes their place.
    """
    accuracy = [("method", *_accuracy_names(tables)), *(_accuracy_cells(row) for row in tables["groups"])]
    cost = [("method", *_COST_NAMES), *(_cost_cells(row) for row in tables["groups"])]
    wide = [_wide("accuracy of the network in use [%]", accuracy), _wide("cost", cost)]
    if all(_columns(table) <= width for table in wide):
        return wide
    return [
        _narrow(zip(accuracy[0] + cost[0][1:], row + costs[1:], strict=True))
        for row, costs in zip(accuracy[1:], cost[1:], strict=True)
    ]


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
    value, index = spread["mean"], 0
    while abs(value) >= 999.5 and index < len(_PREFIXES) - 1:
        value, index = value / 1000, index + 1
    digits = 0 if index == 0 else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {_PREFIXES[index]}{unit}".rstrip()


def seconds(value: float) -> str:
    """Return virtual seconds, such as `12.5 s`."""
    return f"{value:.4g} s" if value < 10_000 else f"{value:,.0f} s"


def _fixed_times(records: Sequence[Record]) -> list[float]:
    ends = [float(r.totals["seconds_virtual"]) for r in records if r.totals]
    shortest = min(ends, default=0.0)
    return [shortest * quarter / 4 for quarter in (1, 2, 3, 4)] if shortest > 0 else []


def _group_row(group: Group, times: Sequence[float]) -> dict[str, Any]:
    records = group.records
    return {
        "label": group.label,
        "method": group.method,
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


def _notes(groups: Sequence[Group]) -> list[str]:
    notes = [
        "A: norms use the test batch's own statistics; B: those of training images, as exported networks do"
    ]
    unfinished = [r.name for group in groups for r in group.records if not r.finished]
    if unfinished:
        notes.append(f"not finished yet: {', '.join(unfinished)}")
    notes += [note for group in groups for record in group.records for note in _rejected(record)]
    tables = {group.label: group.records[0].totals.get("lut") for group in groups}
    notes += [f"{label}: table of dropout vectors: {_TABLES.get(o, o)}" for label, o in tables.items() if o]
    bounds = [g.label for g in groups if g.method in METHODS and METHODS[g.method].resources == "full"]
    if bounds and len(groups) > len(bounds):
        notes.append(
            f"{', '.join(bounds)}: every device is given the means to train the whole network in time; "
            "a bound, not a competitor"
        )
    return notes


def _rejected(record: Record) -> list[str]:
    found = [(event["round"], why) for event in record.events for why in event.get("rejected", ())]
    if not found:
        return []
    round, why = found[0]
    return [f"{record.name}: updates left out: {len(found)}, the first in round {round} ({why})"]


def _accuracy_names(tables: Tables) -> tuple[str, ...]:
    return (*(f"at {seconds(t)}" for t in tables["seconds_virtual"]), "final A", "final B")


def _accuracy_cells(row: dict[str, Any]) -> tuple[str, ...]:
    spreads = (*row["accuracy_at"], row["accuracy"], row["accuracy_recalibrated"])
    return (row["label"], *(percent(spread) for spread in spreads))


def _cost_cells(row: dict[str, Any]) -> tuple[str, ...]:
    up, down = (quantity(row[key], "B") for key in ("bytes_up", "bytes_down"))
    time = "-" if row["seconds_virtual"] is None else seconds(row["seconds_virtual"]["mean"])
    return (
        row["label"],
        str(len(row["seeds"])),
        quantity(row["macs_total"]),
        up,
        down,
        quantity(row["stragglers"]),
        percent(row["late_share"]),
        time,
    )


def _wide(title: str, lines: Sequence[tuple[str, ...]]) -> Table:
    table = empty_table(title)
    for number, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _columns(table: Table) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=1000)
    return Measurement.get(console, console.options, table).maximum


def _narrow(pairs: Iterable[tuple[str, str]]) -> Table:
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
