"""What the commands print: tables or JSON on stdout; progress, and how to go on after an interruption, on stderr."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from leanfleet.errors import StorageError, WorkerError

if TYPE_CHECKING:
    from leanfleet.engines.local import Progress

_SECONDS_BETWEEN_LINES = 5.0
_NARROW, _VERY_NARROW = 100, 72


class Display:
    """Shows how far runs are: a bar on a terminal, elsewhere a plain line now and then.

    As a context manager it also sees to it that whoever is interrupted learns how to go on.

    Args:
        root: Folder of the records.
        names: Names of the records to come, if there are several.
        resumes: What `leanfleet resume` takes; the present run's record if None.
    """

    def __init__(self, root: Path, names: Sequence[str] = (), resumes: Path | None = None) -> None:
        self._root, self._names, self._resumes = root, list(names), resumes
        self._console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._last: Progress | None = None
        self._start = 0.0
        self._began: tuple[float, float] | None = None
        # The same of what comes after the last round.
        self._ending: tuple[float, float] | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._bars = progress_bars(self._console)
        if self._bars is not None:
            self._task = self._bars.add_task("starting", total=None, status="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        elif self._last is not None and error is None:
            self._print(self._last)
        if isinstance(error, KeyboardInterrupt):
            self._say_how_to_go_on()
            sys.exit(130)
        if isinstance(error, WorkerError | StorageError) and self._resumes:
            error.args = (f"{error}; go on with: {self._command()}",)

    def __call__(self, progress: Progress) -> None:
        """Show progress; the engines' `watch`."""
        if self._last is None or self._last.run != progress.run:
            self._start, self._began, self._ending = _done(progress), None, None
        elif self._began is None and _done(progress) > self._start:
            # Not sooner: the first device waits until workers have started, and would make hours of minutes.
            self._began = (time.monotonic(), _done(progress))
        if _ends(progress) and self._ending is None:
            self._ending = (time.monotonic(), progress.share)
        if self._resumes is None:
            self._resumes = self._root / progress.run
        self._last = progress
        if self._bars is not None and self._task is not None:
            columns = self._console.width
            self._bars.update(
                self._task,
                description=self._title(progress, narrow=columns < _NARROW),
                total=progress.rounds,
                completed=_done(progress),
                status=describe(progress, self._seconds_left(progress), short=columns < _VERY_NARROW),
            )
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._print(progress)

    def _print(self, progress: Progress) -> None:
        title = self._title(progress, narrow=False)
        status = describe(progress, self._seconds_left(progress))
        print(f"{title}: {status}", file=sys.stderr, flush=True)
        self._printed = time.monotonic()

    def _title(self, progress: Progress, narrow: bool) -> str:
        if not self._names:
            return "" if narrow else progress.run
        number = f"{self._names.index(progress.run) + 1}/{len(self._names)}"
        return number if narrow else f"run {number} {progress.run}"

    def _seconds_left(self, progress: Progress) -> float | None:
        if self._ending is not None:
            seconds, done = time.monotonic() - self._ending[0], progress.share - self._ending[1]
            return seconds / done * (1 - progress.share) if done > 0 else None
        left = progress.rounds - _done(progress)
        if self._began is None or left <= 0:
            return None if left > 0 else 0.0
        seconds, done = time.monotonic() - self._began[0], _done(progress) - self._began[1]
        return seconds / done * left if done > 0 else None

    def _say_how_to_go_on(self) -> None:
        kept = f"; {self._resumes} is kept, go on with: {self._command()}" if self._resumes else ""
        print(f"interrupted{kept}", file=sys.stderr)

    def _command(self) -> str:
        return f"leanfleet resume {shlex.quote(str(self._resumes))}"


def progress_bars(console: Console | None = None) -> Bars | None:
    """Return a bar on stderr with a field `status`, not started yet; None where stderr is no terminal."""
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    return Bars(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
        TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,
    )


def busy(what: str) -> AbstractContextManager[object]:
    """Show on a terminal that something goes on, where nobody can say how long it will."""
    return Console(stderr=True).status(f"{what} ...")


def width() -> int:
    """Return how many columns tables may take."""
    console = Console()
    # Rich takes 80 columns for a pipe, where nothing limits them.
    return console.width if console.is_terminal or "COLUMNS" in os.environ else 120


def simple_table(title: str | None, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table; numbers, in all but the first of three or more columns, stand to the right."""
    # Here: it brings torch with it, which `--help` can do without.
    from rich.markup import escape

    from leanfleet.report.tables import empty_table

    table = empty_table(title)
    for number, name in enumerate(names):
        table.add_column(name, overflow="fold", justify="right" if number and len(names) > 2 else "left")
    for row in rows:
        # Text, never markup: what devices and files say is in there, too.
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def fitting_tables(title: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[Table]:
    """Return a table, or a small one for each row where the console is too narrow for it."""
    from leanfleet.report.tables import columns, narrow

    lines = [tuple(map(str, row)) for row in rows]
    whole = simple_table(title, names, lines)
    if columns(whole) <= width():
        return [whole]
    return [narrow(zip(names, line, strict=True)) for line in lines]


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables on stdout, with a line between."""
    console = Console(width=width())
    for table in tables:
        console.print(table)
        console.print()


def print_json(value: Any) -> None:
    """Print plain JSON on stdout."""
    print(json.dumps(value, indent=2))


def describe(progress: Progress, seconds_left: float | None, *, short: bool = False) -> str:
    """Return how far a run is, in one line; `short` fits a terminal of 40 columns."""
    accuracy = "-" if progress.accuracy is None else f"{100 * progress.accuracy:.1f}%"
    rounds, left = f"{progress.round}/{progress.rounds}", clock(seconds_left)
    if short:
        return f"{rounds} {accuracy} {progress.seconds_virtual:.4g}s {left}"
    now = f"final rounds {progress.share:.0%}" if _ends(progress) else f"round {rounds}"
    return (
        f"{now}, acc {accuracy}, {progress.seconds_virtual:.4g} s virtual, "
        f"{100 * progress.late_share:.0f}% late, ETA {left}"
    )


def _done(progress: Progress) -> float:
    return min(progress.round + progress.share, progress.rounds)


def _ends(progress: Progress) -> bool:
    """Return whether it is the rounds after the last one, which gossip methods may have."""
    return progress.round >= progress.rounds and progress.share > 0


def clock(seconds: float | None) -> str:
    """Return a duration such as 12:34 or 1:02:03."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
