"""How far a study is, in one line."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from recipe import Task
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from leanfleet.runs import Run

_SECONDS_BETWEEN_LINES = 30.0


class Display:
    """A bar on a terminal; elsewhere a plain line now and then.

    Args:
        name: What to call the study.
        tasks: What it consists of, done or not.
        folder: Where its records are.
        jobs: How many run side by side.
    """

    def __init__(self, name: str, tasks: Sequence[Task], folder: Path, jobs: int) -> None:
        self._name, self._tasks, self._folder, self._jobs = name, tasks, folder, jobs
        self._rounds: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._ended: set[str] = set()
        self._failed = 0
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._printed = time.monotonic()
        self.look(tasks)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn(self._name),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                console=self._console,
                expand=True,
            )
            self._bar.add_task("starting", total=1.0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is None:
            self._say(f"{self._name}: {self._line()[0]}")

    def look(self, tasks: Sequence[Task]) -> None:
        """Read how far some runs are."""
        for task in tasks:
            record = Run(self._folder / task.key)
            events = record.events()
            # After final rounds of gossip there is one event more.
            done = int(events[-1]["round"]) if events else 0
            self._rounds[task.key] = min(done, task.experiment.experiment.rounds)
            self._seconds[task.key] = float(events[-1]["seconds_wall"]) if events else 0.0
            if record.finished:
                self._ended.add(task.key)

    def show(self) -> None:
        """Show how far the study is."""
        line, share = self._line()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=line, completed=share)
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._say(f"{self._name}: {line}")
            self._printed = time.monotonic()

    def end(self, task: Task, error: str) -> None:
        """Take note that a run has come to an end, well or not."""
        self._ended.add(task.key)
        if error:
            self._failed += 1
            self._say(f"failed: {self._folder / task.key}: {error}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self) -> tuple[str, float]:
        """Return how far the study is, and its share that is done."""
        left, share = self._seconds_left()
        every = sum(task.experiment.experiment.rounds for task in self._tasks)
        parts = [
            f"{len(self._ended) - self._failed}/{len(self._tasks)} runs",
            f"{sum(self._rounds.values()):,}/{every:,} rounds",
            *([f"{self._failed} failed"] if self._failed else []),
            f"ETA {'-:--:--' if left is None else timedelta(seconds=round(left))}",
        ]
        return ", ".join(parts), share

    def _seconds_left(self) -> tuple[float | None, float]:
        """Return seconds to go and the share that is done, from what a round of each label has taken so far."""
        rounds, seconds = defaultdict[str, int](int), defaultdict[str, float](float)
        for task in self._tasks:
            rounds[task.label] += self._rounds[task.key]
            seconds[task.label] += self._seconds[task.key]
        spent = sum(seconds.values())
        if not spent:
            return None, 0.0
        usual = spent / sum(rounds.values())
        pace = {label: seconds[label] / n if n else usual for label, n in rounds.items()}
        to_go = [
            (task.experiment.experiment.rounds - self._rounds[task.key]) * pace[task.label]
            for task in self._tasks
            if task.key not in self._ended
        ]
        # The last one is not shared out.
        return max(sum(to_go) / self._jobs, max(to_go, default=0.0)), spent / (spent + sum(to_go))
