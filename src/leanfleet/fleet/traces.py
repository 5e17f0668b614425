"""Recorded availability: piecewise-constant rates from a CSV file."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leanfleet.errors import DataError

_COLUMNS = ("device", "seconds", "rate")


@dataclass(frozen=True)
class Trace:
    """A recorded rate: `rates[k]` holds from `times[k]` to the next time, the last one for ever.

    Args:
        times: Seconds, from 0 and increasing.
        rates: Training MAC/s, or shares of a device's highest rate as `load_traces` returns them.

    Raises:
        DataError: The times or rates are not such.
    """

    times: tuple[float, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.times or len(self.times) != len(self.rates):
            raise DataError(f"a trace needs as many rates ({len(self.rates)}) as times ({len(self.times)})")
        for before, seconds, rate in zip((None, *self.times), self.times, self.rates, strict=False):
            if fault := _fault(before, seconds, rate):
                raise DataError(f"a trace cannot be read: {fault}")

    def rate(self, t: float) -> float:
        """Return the rate at time `t`."""
        return self.rates[max(0, bisect_right(self.times, t) - 1)]

    def next_change(self, t: float) -> float:
        """Return the next recorded time after `t`; infinite after the last."""
        index = bisect_right(self.times, t)
        return self.times[index] if index < len(self.times) else math.inf

    def scaled(self, factor: float) -> Trace:
        """Return the trace with every rate multiplied by `factor`."""
        return Trace(self.times, tuple(rate * factor for rate in self.rates))


def load_traces(path: Path) -> list[Trace]:
    """Read a CSV file with the columns `device`, `seconds` and `rate` (others are ignored).

    A rate is a share of the device's highest rate: at 1 the whole network just ends in time. Devices may have
    any names, are numbered in the order in which they first appear, and their rows may be interleaved.

    Raises:
        DataError: The file cannot be read; names the file and the line.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or ())
            for row in reader:
                _append(rows, row, f"{path}, line {reader.line_num}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV file of traces: {error}") from error
    if not rows:
        raise DataError(f"{path}: holds no traces; give a line 'name,0,1' for each device")
    return [Trace(*(tuple(column) for column in zip(*pairs, strict=True))) for pairs in rows.values()]


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for column in _COLUMNS:
        if column not in columns:
            raise DataError(
                f"{path}, line 1: no column '{column}'; the first line must be '{','.join(_COLUMNS)}'"
            )


def _append(rows: dict[str, list[tuple[float, float]]], row: dict[str, str | None], where: str) -> None:
    """Check one line of a trace file and add it to the rows of its device."""
    if not row["device"]:
        raise DataError(f"{where}: names no device")
    pairs = rows.setdefault(row["device"], [])
    try:
        seconds, rate = float(row["seconds"] or ""), float(row["rate"] or "")
    except ValueError as error:
        raise DataError(f"{where}: 'seconds' and 'rate' must be numbers: {error}") from error
    if fault := _fault(pairs[-1][0] if pairs else None, seconds, rate):
        raise DataError(f"{where}: device '{row['device']}': {fault}")
    pairs.append((seconds, rate))


def _fault(before: float | None, seconds: float, rate: float) -> str | None:
    """Return what is wrong with one change of a trace, given the time of the change before it."""
    if before is None and seconds != 0:
        return f"its first time must be 0, not {seconds:g}"
    if before is not None and not before < seconds < math.inf:
        return f"its times must increase, but {seconds:g} follows {before:g}"
    if not 0 <= rate < math.inf:
        return f"a rate must be finite and at least 0, not {rate:g}"
    return None
