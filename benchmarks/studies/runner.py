"""Runs the experiments of a study that are not finished yet, several side by side.

Each process runs one experiment after the other, itself, so it reads the data set once. Nothing but the records says
what is done: a study goes on wherever it was left.
"""

from __future__ import annotations

import json
import signal
import sys
import tomllib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from progress import Display
from recipe import Study, Task

from leanfleet.engines.local import resume, run
from leanfleet.engines.staff import Staff
from leanfleet.errors import ExperimentError, LeanfleetError, RecordError
from leanfleet.experiment import Experiment, dumps, loads
from leanfleet.runs import clear_unborn
from leanfleet.subnet.lut import Lut
from leanfleet.workers import die_with_parent, interrupts_held_back

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_LEAVE = 5.0


def check(study: Study, folder: Path) -> None:
    """Check that every record which is there is one of this recipe; nothing is touched.

    Args:
        study: The study.
        folder: Where its records are.

    Raises:
        RecordError: One is not.
    """
    found = {task.key: difference(folder / task.key, task.experiment) for task in study.tasks}
    other = {key: what for key, what in found.items() if what}
    if other:
        key, what = next(iter(other.items()))
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise RecordError(
            f"{folder / key}{more}: not what {study.path.name} asks for: {what}; "
            "move it away, or keep the records of this recipe in another folder (--runs)"
        )


def difference(folder: Path, experiment: Experiment) -> str:
    """Return in what a record's experiment differs from another one; nothing if it does not, or there is none."""
    path = folder / "experiment.toml"
    if not path.is_file():
        return ""
    try:
        found = loads(path.read_text(encoding="utf-8"), where=str(path))
    except ExperimentError as error:
        return str(error)
    there, asked = _keys(found), _keys(experiment)
    # A record keeps its table under a name of its own.
    tables = [asked.pop("method.lut", None), there.pop("method.lut", None)]
    for key in sorted(there.keys() | asked.keys()):
        if there.get(key) != asked.get(key):
            return f"it has {key} = {there.get(key)}, not {asked.get(key)}"
    return "" if tables[1] is None or _same_table(tables[0], folder / tables[1]) else "it has another table"


def work(
    tasks: Sequence[Task], folder: Path, jobs: int, device: str, display: Display, tick: Callable[[], None]
) -> dict[str, str]:
    """Run experiments, new ones and begun ones; return what went wrong, by record.

    Args:
        tasks: What to run, in this order.
        folder: Where the study's records are.
        jobs: How many to run side by side.
        device: Where torch computes.
        display: Is told how it goes.
        tick: Called every few seconds.
    """
    waiting, failures = deque(tasks), dict[str, str]()
    hands = [Hand(device) for _ in range(min(jobs, len(tasks)))]
    try:
        while waiting or any(hand.task for hand in hands):
            for hand in hands:
                if hand.task is None and waiting:
                    hand.begin(waiting.popleft(), folder)
            display.look([hand.task for hand in hands if hand.task])
            display.show()
            tick()
            for hand in _ready(hands):
                task, error = hand.finish()
                if error:
                    failures[task.key] = error
                display.look([task])
                display.end(task, error)
    finally:
        for hand in hands:
            hand.close()
    return failures


class Hand:
    """A process that runs one experiment after the other.

    Attributes:
        task: What it is at.
        pipe: Readable when that has come to an end.
    """

    def __init__(self, device: str) -> None:
        self.task: Task | None = None
        self.pipe: connection.Connection | None = None
        self._device = device

    def begin(self, task: Task, folder: Path) -> None:
        """Give it something to do."""
        if self.pipe is None:
            self.pipe, self._process = _start(self._device)
        self.task = task
        told = {"folder": str(folder / task.key), "experiment": dumps(task.experiment)}
        self.pipe.send_bytes(json.dumps(told).encode())

    def finish(self) -> tuple[Task, str]:
        """Return what has come to an end, and what went wrong, if anything did."""
        assert self.task is not None
        assert self.pipe is not None
        task, self.task = self.task, None
        try:
            error = self.pipe.recv_bytes().decode()
        except (EOFError, ConnectionResetError):
            self._process.join()
            error = f"its process ended with exit code {self._process.exitcode}"
        if error:
            # Nobody knows what it left behind, on a GPU above all: the next task gets a new one.
            self.close()
        return task, error

    def close(self) -> None:
        """End the process, whatever it does: a record is whole at any moment."""
        if self.pipe is None:
            return
        if self.task:
            self._process.terminate()
        # One that waits for a task ends by itself now.
        self.pipe.close()
        self.pipe = None
        self._process.join(_SECONDS_TO_LEAVE)
        self._process.kill()
        self._process.join()


def _start(device: str) -> tuple[connection.Connection, SpawnProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, device), daemon=True)
    # Ctrl-C reaches the whole process group; this process alone decides what happens then.
    with interrupts_held_back():
        process.start()
    theirs.close()
    return ours, process


def _ready(hands: Sequence[Hand]) -> list[Hand]:
    """Return whose task has come to an end, after a while at the latest."""
    found = connection.wait([hand.pipe for hand in hands if hand.task and hand.pipe], _SECONDS_BETWEEN_LOOKS)
    return [hand for hand in hands if hand.task and hand.pipe in found]


def _serve(pipe: connection.Connection, device: str) -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    torch.set_num_threads(1)
    with Staff(device) as staff:
        try:
            while True:
                pipe.send_bytes(_attempt(json.loads(pipe.recv_bytes()), staff).encode())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _leave(number: int, frame: FrameType | None) -> None:
    """End tidily: a process that is killed leaves temporary files and semaphores."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _attempt(asked: Mapping[str, str], staff: Staff) -> str:
    """Run or resume one experiment; return what went wrong, in one line."""
    folder = Path(asked["folder"])
    try:
        if (folder / "experiment.toml").is_file():
            resume(folder, workers=1, staff=staff)
        else:
            clear_unborn(folder)
            run(loads(asked["experiment"]), root=folder.parent, workers=1, staff=staff)
    except LeanfleetError as error:
        return str(error)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def _keys(experiment: Experiment) -> dict[str, Any]:
    found = tomllib.loads(dumps(experiment))
    return {f"{name}.{key}": value for name, table in found.items() for key, value in table.items()}


def _same_table(asked: str | None, kept: Path) -> bool:
    """Compare a record's table with the one that was asked for; without one, it is what comes with the package."""
    found = Lut.load(kept)
    expected = Lut.shipped(found.fingerprint) if asked is None else None
    if asked is not None and asked != "uniform":
        expected = Lut.load(Path(asked))
    if expected is None:
        return found.origin == "uniform"
    return {row.rates for row in found.rows} == {row.rates for row in expected.rows}
